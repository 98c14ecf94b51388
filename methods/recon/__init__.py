"""Recon: layers in which the tasks' gradients conflict most often get a copy for every task.

G. Shi, Q. Li, W. Zhang, J. Chen, X.-M. Wu, "Recon: Reducing Conflicting Gradients from the Root for Multi-Task
Learning", ICLR 2023, https://arxiv.org/abs/2302.11289; code https://github.com/moukamisama/Recon, which states no
licence: nothing of it is taken over.

Symbols: T tasks; layers k = 1..n, d_k parameters of layer k; g_i^k gradient of task i's loss with respect to layer k,
one vector; S the severity, s^k the conflict score of layer k; K the number of layers that get copies.

In reading order: `parameters`, `layers` (what a layer is), `conflicts` (the search: s^k), `selection` (the K layers,
and the controls), `network` (the copies), `method` (the course), `telling`, `pictures`. `Recon.fidelity` lists what is
the paper's, the code's and ours. Not supported: groups of tasks within a layer, searches under a loss balancing.
"""

from methods.recon.method import Recon

__all__ = ["Recon"]
