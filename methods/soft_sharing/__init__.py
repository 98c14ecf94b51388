"""Soft parameter sharing: networks that stay the tasks' own and exchange features between stages.

`cross_stitch`, `sluice` and `nddr_cnn` put T single-task networks side by side (`towers`) and mix them through `units`;
`mtan` has one shared backbone with `attention` of each task. Each ends in one training of all tasks and deploys to a
task graph. What comes from which source is said in each module and by
each method's `fidelity`.
"""

from methods.soft_sharing.cross_stitch import CrossStitch
from methods.soft_sharing.mtan import Mtan
from methods.soft_sharing.nddr_cnn import NddrCnn
from methods.soft_sharing.sluice import Sluice

__all__ = ["CrossStitch", "Mtan", "NddrCnn", "Sluice"]
