"""How it is shared: backbones, task graphs and sharing methods. Imports `datasets`, never `benchmark`.

`__all__` is what plug-ins import: the contract of a method, task graphs, and the plain network with its training. Each
name is loaded when it is first asked for, so that a method can be listed without torch.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from methods.contracts import (
        Budget,
        Fidelity,
        Method,
        OptimizerSpec,
        ParameterGroup,
        Reference,
        Role,
        Stage,
        Statement,
        Trainer,
    )
    from methods.figures import Figure
    from methods.graph.operations import Operation, register_operation
    from methods.graph.task_graph import TaskGraph
    from methods.parameters import MethodParams, Tuned
    from methods.plain import fit_graph, fit_plain, parameter_groups, plain_graph, task_losses
    from methods.registry import register_method
    from methods.traits import Traits

_MODULES = {
    "methods.contracts": (
        *("Budget", "Fidelity", "Method", "OptimizerSpec", "ParameterGroup", "Reference", "Role"),
        *("Stage", "Statement", "Trainer"),
    ),
    "methods.figures": ("Figure",),
    "methods.graph.operations": ("Operation", "register_operation"),
    "methods.graph.task_graph": ("TaskGraph",),
    "methods.parameters": ("MethodParams", "Tuned"),
    "methods.plain": ("fit_graph", "fit_plain", "parameter_groups", "plain_graph", "task_losses"),
    "methods.registry": ("register_method",),
    "methods.traits": ("Traits",),
}
_MODULE_OF = {name: module for module, names in _MODULES.items() for name in names}

__all__ = [
    "Budget",
    "Fidelity",
    "Figure",
    "Method",
    "MethodParams",
    "Operation",
    "OptimizerSpec",
    "ParameterGroup",
    "Reference",
    "Role",
    "Stage",
    "Statement",
    "TaskGraph",
    "Trainer",
    "Traits",
    "Tuned",
    "fit_graph",
    "fit_plain",
    "parameter_groups",
    "plain_graph",
    "register_method",
    "register_operation",
    "task_losses",
]


def __getattr__(name: str) -> object:
    import importlib

    if name not in _MODULE_OF:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULE_OF[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
