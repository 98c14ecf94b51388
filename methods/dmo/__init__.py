"""DMO: tasks that are alike share one sparse network, and hard tasks keep more of it.

S. Choi, H. Jin, E. Kim, "Task-Aware Dynamic Model Optimization for Multi-Task Learning", IEEE Access 11:137709-137717,
2023, https://doi.org/10.1109/ACCESS.2023.3339793; code of a first author, written afterwards for the four-task
scenario: https://github.com/sujin-1013/task-aware-DMO.

Symbols: T tasks; W the prunable weights of a backbone, n of them; S_W, S_L, S [T, T] similarities of weights, of loss
curves, combined; L^t_n loss of sample n under the network of task t, mu their mean, d_t difficulty; kept fraction
q_t = 1 - exp(-d_t / tau), k_t survivors, m_t mask; M_g mask of a group.

In reading order: `parameters`, `similarity` (step 2 to 4), `difficulty` (5), `grouping` (6), `pruning` (7 and 8),
`network` (9 and 10), `method` (the course: `singles`, `analysis`, `group_training`), `telling`, `pictures`.
`Dmo.fidelity` lists what is the article's, the code's and ours. Not supported: loss curves by single steps, backbones
of different shapes.
"""

from methods.dmo.method import Dmo

__all__ = ["Dmo"]
