"""Networks that branch like trees: which layers tasks share is chosen by affinity, by search, or at random.

branched (BMTN), bmtas, learning_to_branch (LTB) and random_tree end in the same thing, a `trees.Tree` over the segments
of one backbone, built by `network.tree_graph` and trained from the cell's initial weights.
"""

from methods.branched import bmtas, branched, learning_to_branch, random_tree

__all__ = ["bmtas", "branched", "learning_to_branch", "random_tree"]
