"""Select-or-skip policies: how they are sampled, annealed, unlocked and regularised. Source: adashare.md 2.4 to 2.6."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

from methods.adashare.parameters import AdaShareParams
from methods.adashare.schedule import n_unlocked, temperature

Policy = tuple[tuple[bool, ...], ...]  # [K][L], True = execute
_SMALLEST = 1e-7  # keeps the logarithms of a uniform draw finite


def relaxed(logits: Tensor, noise: Tensor, tau: float) -> Tensor:
    """Execute weight p = sigmoid((A_0 - A_1 + xi) / tau), float [..., L]: the Gumbel-Softmax of two columns.

    logits: float [..., L, 2]; noise: xi ~ Logistic(0, 1), the difference of two Gumbel variables, float [..., L].
    """
    return torch.sigmoid((logits[..., 0] - logits[..., 1] + noise) / tau)


def logistic(n: int, rng: torch.Generator) -> Tensor:
    """n draws of Logistic(0, 1), in one call of the generator."""
    u = torch.rand(n, generator=rng).clamp_(_SMALLEST, 1 - _SMALLEST)
    return torch.log(u) - torch.log1p(-u)


def execute_probabilities(logits: Tensor) -> Tensor:
    """alpha, float [..., L], of logits float [..., L, 2]."""
    return torch.softmax(logits, -1)[..., 0]


def draw_policy(
    alpha: Tensor, rng: torch.Generator, how: Literal["bernoulli", "argmax"], first_free: int = 0
) -> Policy:
    """A policy from execute probabilities float [K, L]: one draw per task and unit, or the likelier decision.

    first_free: units before this index always run. A tie is executed: nothing speaks for skipping.
    """
    chosen = alpha.cpu() >= 0.5 if how == "argmax" else torch.rand(alpha.shape, generator=rng) < alpha.cpu()
    chosen[:, :first_free] = True
    return tuple(tuple(row) for row in chosen.tolist())


def official_sparsity(logits: Tensor, free: slice) -> Tensor:
    """L_sp = sum_k mean over free l of -log(1 - alpha_k[l]): cross-entropy with the target `skip`."""
    unlocked = logits[:, free]
    return nn.functional.softplus(unlocked[..., 0] - unlocked[..., 1]).mean(1).sum()


def paper_sparsity(logits: Tensor) -> Tensor:
    """L_sp = sum_k sum_l log alpha_k[l] (recalled), over all units."""
    return nn.functional.logsigmoid(logits[..., 0] - logits[..., 1]).sum()


def _pairs(values: Tensor, weights: Tensor) -> Tensor:
    """Sum over unordered pairs of tasks and over l of weights[l] |v_i[l] - v_j[l]|. values: float [K, L]."""
    i, j = torch.triu_indices(len(values), len(values), offset=1, device=values.device)
    return ((values[i] - values[j]).abs() * weights).sum()


def official_sharing(logits: Tensor) -> Tensor:
    """L_sh = sum over pairs and all l of (l / L) |Z_i[l] - Z_j[l]|: deep units weigh most."""
    n_units = logits.shape[1]
    depth = torch.arange(1, n_units + 1, dtype=logits.dtype, device=logits.device) / n_units
    return _pairs(logits[..., 0], depth)


def paper_sharing(logits: Tensor) -> Tensor:
    """L_sh = sum over pairs and all l of ((L - l) / L) |alpha_i[l] - alpha_j[l]| (recalled): shallow units weigh
    most.
    """
    n_units = logits.shape[1]
    depth = torch.arange(1, n_units + 1, dtype=logits.dtype, device=logits.device) / n_units
    return _pairs(execute_probabilities(logits), 1 - depth)


class Policies(nn.Module):
    """The logits A of all tasks, how far they are unlocked and how they are sampled.

    unlock() sets tau and n; both follow from the number of the cycle, so a checkpoint need not hold them.
    """

    def __init__(self, n_tasks: int, n_units: int, params: AdaShareParams, rng: torch.Generator) -> None:
        super().__init__()
        self.params, self.n_units = params, n_units
        match params.logit_init:
            case "equal":
                start = torch.full((n_tasks, n_units, 2), 0.5)
            case "random":
                start = 1e-3 * torch.randn(n_tasks, n_units, 2, generator=rng)
            case "all_chosen":
                start = torch.tensor([0.0, params.all_chosen_logit]).repeat(n_tasks, n_units, 1)
        self.logits = nn.Parameter(start)
        self.tau, self.n = params.tau_start, n_units

    def unlock(self, c: int, n_cycles: int) -> None:
        """tau and n of the cycle that follows c completed ones."""
        self.tau = temperature(c, n_cycles, self.params)
        self.n = n_unlocked(c, self.n_units, n_cycles, self.params)

    @property
    def first_free(self) -> int:
        """Index of the first unit that follows its policy; the units before it are executed by all tasks."""
        return max(self.n_units - self.n, self.params.first_free_unit - 1)

    def alpha(self) -> Tensor:
        """Execute probabilities, float [K, L]."""
        return execute_probabilities(self.logits)

    def sample(self, rng: torch.Generator) -> list[Sequence[Tensor | bool]]:
        """One relaxed draw per task, for the whole batch: True for locked units, a scalar tensor p for the others.

        One call of the generator per task, whatever is unlocked, so that the stream depends on steps alone.
        """
        first = self.first_free
        drawn: list[Sequence[Tensor | bool]] = []
        for logits in self.logits:
            noise = logistic(self.n_units, rng).to(logits.device, non_blocking=True)
            p = relaxed(logits, noise, self.tau)
            if self.params.hard_samples:  # straight-through: hard forward, the relaxation's gradient
                p = (p > 0.5).to(p.dtype) + (p - p.detach())
            drawn.append([*[True] * first, *p[first:].unbind()])
        return drawn

    @torch.no_grad()
    def draw(self, rng: torch.Generator) -> Policy:
        """One Bernoulli policy with the locked units executed: how the search is evaluated."""
        return draw_policy(self.alpha(), rng, "bernoulli", self.first_free)

    def penalty(self) -> Tensor:
        """w_sp L_sp + w_sh L_sh, of the policy phase only."""
        params, free = self.params, slice(self.first_free, None)
        official = params.sparsity_form == "neg_log_skip_mean"
        sparsity = official_sparsity(self.logits, free) if official else paper_sparsity(self.logits)
        deep = params.sharing_form == "l1_logit_deep"
        sharing = official_sharing(self.logits) if deep else paper_sharing(self.logits)
        return params.sparsity_weight * sparsity + params.sharing_weight * sharing
