"""How blocks are executed and skipped. Source: adashare.md 2.2 and 2.3, traps T1 to T3 and T30.

One rule for all families: s = skip(x), execute(x, s), and forward(x) == execute(x, skip(x)), bit for bit on one x: the
same operations on the same shapes in the same order.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Iterable, Mapping, Sequence
from typing import cast

from torch import Tensor, nn

from datasets.errors import UsageError
from methods.backbones.sublayers import Cutter, Sublayer, not_cut


class Form(abc.ABC):
    """How blocks of one kind are skipped and executed: forward(x) == execute(x, skip(x)), bit for bit.

    Stateless. `module` is the block, or for `execute` anything with the same children but the projection.
    """

    @abc.abstractmethod
    def skips(self, module: nn.Module) -> bool:
        """Whether the block can be skipped."""

    @abc.abstractmethod
    def projection(self, module: nn.Module) -> nn.Module | None:
        """The part of the block that is its skip path, None where that is the identity."""

    @abc.abstractmethod
    def execute(self, module: nn.Module, x: Tensor, s: Tensor) -> Tensor:
        """The block's output where s = skip(x) is given. Changes neither x nor s."""

    @abc.abstractmethod
    def branch(self, module: nn.Module) -> nn.Module:
        """A module of two inputs (x, s) that runs `execute` and holds the block's parts without the skip path."""

    def sublayers(self, module: nn.Module) -> Sequence[Sublayer]:
        """The block as residual sub-layers one after another, of which the first reads s = skip(x); empty where blocks
        of this kind stay whole.
        """
        return ()


class Branch(nn.Module):
    """What is run when a block is executed: its children without the skip path, shared with the block, by name."""

    def __init__(self, form: Form, block: nn.Module) -> None:
        super().__init__()
        self.form = form
        projection = form.projection(block)
        for name, child in block.named_children():
            if child is not projection:
                self.add_module(name, child)

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """x: input of the block, s: output of its skip path."""
        return self.form.execute(self, x, s)


@dataclasses.dataclass(frozen=True)
class Residual(Form):
    """activation(F(x) + s) with F the named children in forward order; absent ones (None) are left out.

    shortcut: name of the projection, where blocks have one. guard: attribute that is None or False where a block has no
    skip; None where all have one. inplace: add into F's output where the native forward does, which saves a tensor.
    """

    parts: tuple[str, ...]
    activation: str | None = None
    shortcut: str | None = None
    guard: str | None = None
    inplace: bool = False

    def skips(self, module: nn.Module) -> bool:
        """Spec: adashare 2.2; inverted residuals only where timm says has_skip."""
        return self.guard is None or getattr(module, self.guard) not in (None, False)

    def projection(self, module: nn.Module) -> nn.Module | None:
        """The downsample path of a ResNet block that changes shape."""
        return None if self.shortcut is None else cast("nn.Module | None", getattr(module, self.shortcut))

    def execute(self, module: nn.Module, x: Tensor, s: Tensor) -> Tensor:
        """No activation on s (adashare T2)."""
        for name in self.parts:
            part = getattr(module, name, None)
            if part is not None:
                x = part(x)
        if self.inplace:
            x += s
        else:
            x = x + s
        return x if self.activation is None else cast(Tensor, getattr(module, self.activation)(x))

    def branch(self, module: nn.Module) -> nn.Module:
        """F and the activation."""
        return Branch(self, module)


class StageEntry(nn.Module):
    """The downsampling at a stage's entry and the stage's first block, which it belongs to (DESIGN.md 3)."""

    def __init__(self, downsample: nn.Module, inner: nn.Module) -> None:
        super().__init__()
        self.downsample = downsample
        self.inner = inner

    def forward(self, x: Tensor) -> Tensor:
        """inner(downsample(x))."""
        return cast(Tensor, self.inner(self.downsample(x)))


class Inner(nn.Module):
    """Runs a block's inner part on the skip path's output."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, x: Tensor, s: Tensor) -> Tensor:
        """x is not read: the residual stream starts from s."""
        return cast(Tensor, self.inner(s))


@dataclasses.dataclass(frozen=True)
class Stream(Form):
    """inner(s): blocks that only add to a residual stream, whatever number of branches they have (adashare 2.2).

    A `StageEntry` is skipped by its downsampling, every other block by the identity. cutter: cuts into sub-layers.
    """

    cutter: Cutter = not_cut

    def skips(self, module: nn.Module) -> bool:
        """Always."""
        return True

    def projection(self, module: nn.Module) -> nn.Module | None:
        """The downsampling at a stage's entry, which stays when the block is skipped (adashare T30)."""
        return module.downsample if isinstance(module, StageEntry) else None

    @staticmethod
    def _inner(module: nn.Module) -> nn.Module:
        return module.inner if isinstance(module, StageEntry) else module

    def execute(self, module: nn.Module, x: Tensor, s: Tensor) -> Tensor:
        """inner(s)."""
        return cast(Tensor, self._inner(module)(s))

    def branch(self, module: nn.Module) -> nn.Module:
        """The inner part."""
        return Inner(self._inner(module))

    def sublayers(self, module: nn.Module) -> Sequence[Sublayer]:
        """Of the inner part."""
        return self.cutter(self._inner(module))


def forms_of(blocks: Sequence[nn.Module], table: Mapping[type[nn.Module], Form]) -> list[tuple[nn.Module, Form]]:
    """Each block with its form, by exact class. Raises UsageError for a class that the table does not hold."""
    for block in blocks:
        if type(block) not in table:
            known = ", ".join(cls.__name__ for cls in table)
            raise UsageError(f"Blocks of class {type(block).__name__} cannot be executed and skipped; known: {known}.")
    return [(block, table[type(block)]) for block in blocks]


def streams_of(
    stages: Iterable[tuple[nn.Module | None, Sequence[nn.Module]]], known: Mapping[type[nn.Module], Cutter]
) -> list[tuple[nn.Module, Form]]:
    """Blocks of stages (entry downsampling, or nn.Identity or None, with blocks) that only add to a residual stream.

    The downsampling joins the first block of its stage. known: {class of block: what cuts it into sub-layers}. Raises
    UsageError for a block class that is not known.
    """
    cut: list[tuple[nn.Module, Form]] = []
    forms: dict[type[nn.Module], Form] = {cls: Stream(cutter) for cls, cutter in known.items()}
    for entry, blocks in stages:
        whole = forms_of(blocks, forms)
        if entry is not None and type(entry) is not nn.Identity:
            whole[0] = (StageEntry(entry, blocks[0]), whole[0][1])
        cut += whole
    return cut
