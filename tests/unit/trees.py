"""Every tree, one after another: what choices and counts of trees are compared with."""

from __future__ import annotations

from collections.abc import Iterator

from methods.branched.trees import Tree, refinements, together


def all_trees(n_tasks: int, depth: int) -> Iterator[Tree]:
    """Every tree once; their number grows as in the table of branched 2.6."""

    def grow(tree: Tree) -> Iterator[Tree]:
        if len(tree) == depth:
            yield tree
            return
        for finer in refinements(tree[-1] if tree else together(n_tasks)):
            yield from grow((*tree, finer))

    return grow(())
