"""Task switching: one network and one output; a code selects the task (Sun et al. 2021)."""

from methods.task_switching.method import TaskSwitching

__all__ = ["TaskSwitching"]
