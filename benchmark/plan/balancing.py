"""Loss balancing: the ways in which weighted losses become gradients, with their papers and torchjd's objects.

A *scalarizer* makes one loss of the tasks' losses. An *aggregator* makes one gradient of the tasks' gradients, where
tasks share a parameter in the step's graph; a parameter that one task alone reads gets that task's own gradient, as
`torchjd.autojac.mtl_backward` has it. Only `equal`, the sum, is ours; all others are the library's.

Left out of torchjd: Mean, Sum and its Constant and Random aggregators (the scalarizers do the same at less cost), Krum
and TrimmedMean (they guard against hostile rows, not against conflicts), COSMOS, PBI and PCD (they need a preference or
a primary task, and our tasks are equal), CR-MOGM, MoDo and SDMGrad (they modify other balancings, or need three batches
a step), NashMTL (the state of its solver cannot be restored after a resume).
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import nn

from benchmark.plan.suite import BalancingSettings
from datasets.errors import UsageError, unknown

EQUAL = "equal"
Kind = Literal["scalarizer", "aggregator"]
_OURS = {"self", "shape", "projector", "f"}  # arguments that we fill in, and objects that a suite cannot hold


@dataclasses.dataclass(frozen=True)
class BalancerEntry:
    """One way to balance. title: its class in torchjd. defaults: ours, for arguments that torchjd asks for.

    fixed_shape: it keeps state for every task and shared parameter of its first step, so these must be the same at
    every step.
    """

    name: str
    kind: Kind
    title: str
    paper: str
    link: str
    defaults: Mapping[str, float] = dataclasses.field(default_factory=dict)
    fixed_shape: bool = False

    def parameters(self) -> dict[str, Any]:
        """{argument: default} of the arguments that a suite may give; None if the class works without it,
        `inspect.Parameter.empty` if it is required.
        """
        arguments = inspect.signature(_class_of(self).__init__).parameters
        given = {name: argument.default for name, argument in arguments.items() if name not in _OURS}
        return {**given, **self.defaults}

    def takes_vector(self, name: str) -> bool:
        """Whether an argument is a number for every task, `{task: number}` in a suite."""
        return "Tensor" in str(inspect.signature(_class_of(self).__init__).parameters[name].annotation)


def _arxiv(number: str) -> str:
    return f"https://arxiv.org/abs/{number}"


_ENTRIES = (
    BalancerEntry(
        "constant", "scalarizer", "Constant", "Sum with constant weights, {task: weight}.", "https://torchjd.org"
    ),
    BalancerEntry(
        "dwa", "scalarizer", "DWA",
        "Liu, Johns, Davison: End-to-End Multi-Task Learning with Attention (Dynamic Weight Average), CVPR 2019. A "
        "cycle stands for an epoch.",
        _arxiv("1803.10704"),
    ),
    BalancerEntry(
        "famo", "scalarizer", "FAMO",
        "Liu, Feng, Stone, Liu: FAMO: Fast Adaptive Multitask Optimization, NeurIPS 2023. A second forward "
        "pass a step.",
        _arxiv("2306.03792"),
    ),
    BalancerEntry(
        "geometric_mean", "scalarizer", "GeometricMean",
        "Chennupati et al.: MultiNet++ (Geometric Loss Strategy), CVPR Workshops 2019.",
        _arxiv("1904.08492"),
    ),
    BalancerEntry(
        "imtl_l", "scalarizer", "IMTLL",
        "Liu et al.: Towards Impartial Multi-task Learning (IMTL-L, of losses), ICLR 2021.",
        "https://openreview.net/forum?id=IMPnRXEWpvr",
    ),
    BalancerEntry(
        "random", "scalarizer", "Random",
        "Lin et al.: Reasonable Effectiveness of Random Weighting (RLW), TMLR 2022.",
        _arxiv("2111.10603"),
    ),
    BalancerEntry(
        "stch", "scalarizer", "STCH",
        "Lin et al.: Smooth Tchebycheff Scalarization for Multi-Objective Optimization, ICML 2024.",
        _arxiv("2402.19078"),
        defaults={"mu": 1.0},
    ),
    BalancerEntry(
        "uncertainty", "scalarizer", "UW",
        "Kendall, Gal, Cipolla: Multi-Task Learning Using Uncertainty to Weigh Losses (UW), CVPR 2018.",
        _arxiv("1705.07115"),
    ),
    BalancerEntry(
        "aligned_mtl", "aggregator", "AlignedMTL",
        "Senushkin et al.: Independent Component Alignment for Multi-Task Learning, CVPR 2023.",
        _arxiv("2305.19000"),
    ),
    BalancerEntry(
        "cagrad", "aggregator", "CAGrad",
        "Liu et al.: Conflict-Averse Gradient Descent for Multi-task Learning, NeurIPS 2021.",
        _arxiv("2110.14048"),
        defaults={"c": 0.5},
    ),
    BalancerEntry(
        "config", "aggregator", "ConFIG",
        "Liu, Chu, Thuerey: ConFIG: Towards Conflict-free Training of Physics Informed Neural Networks, ICLR 2025.",
        _arxiv("2408.11104"),
    ),
    BalancerEntry(
        "dualproj", "aggregator", "DualProj",
        "Lopez-Paz, Ranzato: Gradient Episodic Memory for Continual Learning (eq. 11), NeurIPS 2017.",
        _arxiv("1706.08840"),
    ),
    BalancerEntry(
        "excess_mtl", "aggregator", "ExcessMTL",
        "He et al.: Robust Multi-Task Learning with Excess Risks, ICML 2024. Every batch needs a label of every task.",
        "https://proceedings.mlr.press/v235/he24n.html",
        fixed_shape=True,
    ),
    BalancerEntry(
        "fairgrad", "aggregator", "FairGrad",
        "Ban, Ji: Fair Resource Allocation in Multi-Task Learning, ICML 2024.",
        _arxiv("2402.15638"),
        defaults={"alpha": 1.0},
    ),
    BalancerEntry(
        "graddrop", "aggregator", "GradDrop",
        "Chen et al.: Just Pick a Sign: Optimizing Deep Multitask Models with Gradient Sign Dropout, NeurIPS 2020. On "
        "gradients of parameters, not of activations.",
        _arxiv("2010.06808"),
    ),
    BalancerEntry(
        "gradvac", "aggregator", "GradVac",
        "Wang et al.: Gradient Vaccine, ICLR 2021. One similarity for the whole of the shared parameters.",
        _arxiv("2010.05874"),
    ),
    BalancerEntry(
        "imtl_g", "aggregator", "IMTLG",
        "Liu et al.: Towards Impartial Multi-task Learning (IMTL-G, of gradients), ICLR 2021.",
        "https://openreview.net/forum?id=IMPnRXEWpvr",
    ),
    BalancerEntry(
        "mgda", "aggregator", "MGDA",
        "Désidéri 2012; Sener, Koltun: Multi-Task Learning as Multi-Objective Optimization, NeurIPS 2018. On "
        "parameters, not on the shared representation (MGDA-UB).",
        _arxiv("1810.04650"),
    ),
    BalancerEntry(
        "pcgrad", "aggregator", "PCGrad",
        "Yu et al.: Gradient Surgery for Multi-Task Learning, NeurIPS 2020.",
        _arxiv("2001.06782"),
    ),
    BalancerEntry(
        "upgrad", "aggregator", "UPGrad",
        "Quinton, Rey: Jacobian Descent for Multi-Objective Optimization, 2024.",
        _arxiv("2406.16232"),
    ),
)  # fmt: skip
BALANCERS: Mapping[str, BalancerEntry] = {entry.name: entry for entry in _ENTRIES}


def balancing_names() -> list[str]:
    """Names that `balancing` takes: `equal`, then the scalarizers and the aggregators."""
    return [EQUAL, *BALANCERS]


def entry_of(name: str) -> BalancerEntry:
    """The entry of a name other than `equal`. Raises UnknownNameError; a class of torchjd leads to our name for it."""
    if name not in BALANCERS:
        ours = next((entry.name for entry in _ENTRIES if entry.title.lower() == name.lower()), None)
        if ours is not None:
            raise UsageError(f"Unknown loss balancing {name!r}. torchjd's {name} is called {ours!r} here.")
        raise unknown("loss balancing", name, balancing_names())
    return BALANCERS[name]


def resolved(settings: BalancingSettings, tasks: Sequence[str]) -> BalancingSettings:
    """Settings with all defaults filled in, as a cell stores them.

    Raises UsageError for an unknown name or parameter, a `{task: number}` with missing or unknown tasks, and a missing
    package.
    """
    if settings.name == EQUAL:
        if settings.params:
            raise UsageError(f"Loss balancing 'equal' takes no params; 'constant' takes weights: {{{tasks[0]}: 1.0}}.")
        return settings
    entry = entry_of(settings.name)
    params: dict[str, Any] = {
        name: default for name, default in entry.parameters().items() if isinstance(default, (bool, int, float, str))
    }
    for name, value in settings.params.items():
        if isinstance(value, Mapping):
            _require_tasks(settings.name, name, value, tasks)
            params[name] = {task: float(number) for task, number in value.items()}
        else:  # 1 and 1.0 are one setting, hence one cell
            is_float = isinstance(params.get(name), float) and not isinstance(value, str)
            params[name] = float(value) if is_float else value
    found = BalancingSettings(name=settings.name, params=params)
    build(found, tasks)
    return found


def _require_tasks(name: str, option: str, value: Mapping[str, float], tasks: Sequence[str]) -> None:
    for task in value:
        if task not in tasks:
            raise unknown(f"task in {option} of loss balancing {name!r}", task, tasks)
    for task in tasks:
        if task not in value:
            raise UsageError(f"Loss balancing {name!r}: {option} needs a number for every task; {task!r} has none.")


def _class_of(entry: BalancerEntry) -> type[nn.Module]:
    from torchjd import aggregation, scalarization

    found: type[nn.Module] = getattr(scalarization if entry.kind == "scalarizer" else aggregation, entry.title)
    return found


def build(settings: BalancingSettings, tasks: Sequence[str]) -> nn.Module:
    """torchjd's object for these tasks; `{task: number}` becomes a vector in their order. Raises UsageError."""
    entry = entry_of(settings.name)
    known = entry.parameters()
    for name in settings.params:
        if name not in known:
            if not known:
                raise UsageError(f"Loss balancing {settings.name!r} takes no params; {name!r} was given.")
            raise unknown(f"parameter of loss balancing {settings.name!r}", name, known)
        if isinstance(settings.params[name], Mapping) != entry.takes_vector(name):
            wanted = f"{{{tasks[0]}: 1.0, ...}}" if entry.takes_vector(name) else "one value"
            raise UsageError(
                f"Loss balancing {settings.name!r}: {name} is {settings.params[name]!r}; expected {wanted}."
            )
    for name, default in known.items():
        if default is inspect.Parameter.empty and name not in settings.params:
            example = ", ".join(f"{task}: 1.0" for task in tasks)
            raise UsageError(f"Loss balancing {settings.name!r} needs {name}, for example {name}: {{{example}}}.")
    arguments: dict[str, Any] = {
        name: torch.tensor([value[task] for task in tasks]) if isinstance(value, Mapping) else value
        for name, value in {**entry.defaults, **settings.params}.items()
    }
    cls = _class_of(entry)
    if "shape" in inspect.signature(cls.__init__).parameters:
        arguments["shape"] = len(tasks)
    try:
        return cls(**arguments)
    except (AttributeError, TypeError, ValueError, ImportError) as error:
        raise UsageError(f"Loss balancing {settings.name!r}: {str(error).rstrip('.')}.") from error
