"""Kinds of tasks, one file each: loss, metrics, ignore value, head channels. Spec: datasets 2.1, measurement 1.2."""

from datasets.kinds.base import Kind
from datasets.kinds.registry import get_kind, kind_names, register_kind

__all__ = ["Kind", "get_kind", "kind_names", "register_kind"]
