"""Low-rank updates of one frozen backbone, shared by all tasks and of each task's own (Agiza et al. 2024)."""

from methods.lora.method import Lora

__all__ = ["Lora"]
