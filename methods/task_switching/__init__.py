"""Task switching: one network and one output, told by a code which task it is to do (Sun et al. 2021)."""

from methods.task_switching.method import TaskSwitching

__all__ = ["TaskSwitching"]
