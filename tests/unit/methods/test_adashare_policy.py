"""Policies of AdaShare as formulas: sampling, temperature, curriculum, losses, and what their optimizer makes of them.

Numbers are those of adashare.md 7; T names a trap there.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import scipy.optimize
import scipy.stats
import torch
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from methods.adashare.parameters import AdaShareParams
from methods.adashare.policy import (
    Policies,
    draw_policy,
    execute_probabilities,
    logistic,
    official_sharing,
    official_sparsity,
    paper_sharing,
    paper_sparsity,
    relaxed,
)
from methods.adashare.presets import PRESETS
from methods.adashare.schedule import cycles_to_unlock, n_unlocked, temperature
from methods.streams import generator

LN2 = math.log(2)
PUBLISHED = {"recipe": "published", "published": {"preset": "nyu_v2_3task"}}


def params(**values: Any) -> AdaShareParams:
    return AdaShareParams(**values)


def policies(n_tasks: int = 2, n_units: int = 8, **values: Any) -> Policies:
    return Policies(n_tasks, n_units, params(**values), generator(0, "logits"))


def logits(rows: list[list[float]]) -> torch.Tensor:
    """Z with column 1 = 0."""
    z = torch.tensor(rows, dtype=torch.float64)
    return torch.stack([z, torch.zeros_like(z)], -1)


# Temperature and curriculum


def test_tau_falls_once_per_cycle() -> None:
    """T7."""
    official = params(tau_end=None)
    found = [temperature(c, 20, official) for c in (0, 1, 2, 3, 86)]
    assert found == pytest.approx([5, 4.825, 4.656125, 4.493160625, 0.23351724], rel=1e-7)
    suite = [temperature(c, 20, params()) for c in (1, 10, 20)]
    assert suite == pytest.approx([4.111701, 0.707107, 0.1], abs=1e-6)
    assert [temperature(c, 7, params()) for c in (0, 7)] == pytest.approx([5, 0.1])


def test_the_last_units_are_unlocked_first_one_at_a_time() -> None:
    """T6."""
    official = params(curriculum_speed=3)
    found = [n_unlocked(c, 8, 100, official) for c in range(25)]
    assert found == [1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4, 5, 5, 5, 6, 6, 6, 7, 7, 7, 8, 8, 8, 8]
    auto = [n_unlocked(c, 8, 20, params()) for c in range(21)]
    assert auto == [1, 1, 2, 3, 3, 4, 5, 5, 6, 7, *[8] * 11]
    assert [n_unlocked(c, 8, 20, params(curriculum=False)) for c in range(3)] == [8, 8, 8]
    made = policies(curriculum_speed=3)
    made.unlock(6, 100)
    assert (made.n, made.first_free) == (3, 5)
    drawn = made.sample(generator(0, "x"))
    assert [decision is True for decision in drawn[0]] == [True] * 5 + [False] * 3


@given(st.integers(1, 60), st.integers(2, 60))
def test_the_automatic_curriculum_always_ends_at_half_of_the_cycles(n_units: int, n_cycles: int) -> None:
    open_units = [n_unlocked(c, n_units, n_cycles, params()) for c in range(n_cycles)]
    assert open_units == sorted(open_units)
    assert open_units[0] >= 1
    assert open_units[-1] == n_units  # T27: the last cycle of a search of two or more sees them all
    assert all(n == n_units for n in open_units[-(n_cycles // 2) :])


def test_cycles_that_a_curriculum_needs() -> None:
    """T27: ResNet-34 at speed 3 needs 46."""
    assert cycles_to_unlock(16, 3) == 46
    assert n_unlocked(45, 16, 100, params(curriculum_speed=3)) == 16
    assert n_unlocked(44, 16, 100, params(curriculum_speed=3)) == 15


@given(st.integers(1, 60), st.integers(1, 40))
def test_the_last_of_the_cycles_needed_is_the_first_to_see_all_units(n_units: int, tenths: int) -> None:
    """Also at speeds that no binary number holds: by floats 3 // 0.1 is 29."""
    speed = tenths / 10
    last, given_speed = cycles_to_unlock(n_units, speed) - 1, params(curriculum_speed=speed)
    assert n_unlocked(last, n_units, 1000, given_speed) == n_units
    if last:
        assert n_unlocked(last - 1, n_units, 1000, given_speed) < n_units


def test_units_below_the_first_free_one_stay() -> None:
    made = policies(first_free_unit=3)
    made.unlock(20, 20)
    assert made.first_free == 2
    assert all(row[:2] == (True, True) for _ in range(20) for row in made.draw(generator(_, "x")))


# Sampling


@pytest.mark.parametrize(
    ("tau", "p", "slope"), [(5, 0.554711, 0.049401), (1, 0.75, 0.1875), (0.1, 0.999983, 1.6934e-4)]
)
def test_gumbel_softmax_by_hand(tau: float, p: float, slope: float) -> None:
    """T8: xi = ln 3, equal logits."""
    a = torch.zeros(1, 2, dtype=torch.float64, requires_grad=True)
    value = relaxed(a, torch.tensor([math.log(3)], dtype=torch.float64), tau)
    value.sum().backward()
    assert float(value.detach()) == pytest.approx(p, abs=1e-6)
    assert float(a.grad[0, 0]) == pytest.approx(slope, rel=1e-4)
    assert float(a.grad[0, 1]) == pytest.approx(-slope, rel=1e-4)


def test_one_sigmoid_of_a_logistic_is_the_softmax_of_two_gumbels() -> None:
    """An independent form: torch's own Gumbel-Softmax."""
    a, tau = torch.tensor([0.8, -0.3]), 0.7
    ours = relaxed(a.expand(20000, 2), logistic(20000, generator(1, "x")), tau)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        theirs = torch.nn.functional.gumbel_softmax(a.expand(20000, 2), tau)[:, 0]
    assert scipy.stats.ks_2samp(ours.numpy(), theirs.numpy()).pvalue > 0.01


def test_limits_of_gumbel_softmax() -> None:
    """T8: at tau = 1 and equal logits p is uniform; P(p > 1/2) does not depend on tau; the mean slope goes to 1/4."""
    xi = logistic(100_000, generator(0, "x")).double()
    zero = torch.zeros(len(xi), 2, dtype=torch.float64)
    p = relaxed(zero, xi, 1.0)
    assert scipy.stats.kstest(p.numpy(), "uniform").pvalue > 0.01
    assert float(p.var()) == pytest.approx(1 / 12, abs=1e-3)
    assert float((p * (1 - p)).mean()) == pytest.approx(1 / 6, abs=1e-3)
    shifted = torch.tensor([1.0, -0.5], dtype=torch.float64).expand(len(xi), 2)
    for tau in (5.0, 1.0, 0.1):
        assert float((relaxed(shifted, xi, tau) > 0.5).double().mean()) == pytest.approx(
            1 / (1 + math.exp(-1.5)), abs=5e-3
        )
    sharp = relaxed(zero, xi, 0.05)
    assert float((sharp * (1 - sharp) / 0.05).mean()) == pytest.approx(1 / 4, abs=0.01)


def test_noise_is_logistic_and_finite(monkeypatch: pytest.MonkeyPatch) -> None:
    noise = logistic(100_000, generator(0, "x"))
    assert torch.isfinite(noise).all()
    assert scipy.stats.kstest(noise.numpy(), "logistic").pvalue > 0.01
    for end in (0.0, 1.0):
        monkeypatch.setattr(torch, "rand", lambda n, generator, end=end: torch.full((n,), end))
        assert torch.isfinite(logistic(1, generator(0, "x"))).all()


def test_one_call_of_the_generator_per_task_whatever_is_unlocked(monkeypatch: pytest.MonkeyPatch) -> None:
    """T9: one mask for the whole batch, and a stream that does not depend on the curriculum."""
    calls = []
    real = torch.rand
    monkeypatch.setattr(torch, "rand", lambda *size, **options: calls.append(size) or real(*size, **options))
    states = []
    for c in (0, 10):
        made, rng = policies(n_tasks=3), generator(0, "gumbel")
        made.unlock(c, 20)
        drawn = made.sample(rng)
        assert all(decision is True or decision.shape == () for row in drawn for decision in row)
        states.append(rng.get_state())
    assert calls == [(8,)] * 6
    assert torch.equal(*states)


@pytest.mark.numerical
def test_hard_samples_are_hard_forward_and_soft_backward() -> None:
    soft, hard = policies(), policies(hard_samples=True)
    for made in (soft, hard):
        made.unlock(20, 20)
    p = torch.stack([*soft.sample(generator(0, "x"))[0]])
    q = torch.stack([*hard.sample(generator(0, "x"))[0]])
    assert torch.equal(q.detach(), (p.detach() > 0.5).float())
    p.sum().backward()
    q.sum().backward()
    assert torch.equal(soft.logits.grad, hard.logits.grad)
    assert len(set(p.detach().tolist())) > 2


def test_draws_are_bernoulli_and_repeat_with_the_seed() -> None:
    """T21."""
    alpha = torch.full((10_000, 1), 0.7)
    drawn = draw_policy(alpha, generator(0, "x"), "bernoulli")
    assert np.mean(drawn) == pytest.approx(0.70, abs=0.02)
    assert np.mean(draw_policy(alpha, generator(0, "x"), "argmax")) == 1.0
    assert draw_policy(alpha, generator(0, "x"), "bernoulli") == drawn
    assert draw_policy(alpha, generator(1, "x"), "bernoulli") != drawn
    sure = torch.tensor([[0.0, 1.0]]).expand(500, 2)
    assert set(draw_policy(sure, generator(0, "x"), "bernoulli")) == {(False, True)}
    assert set(draw_policy(sure, generator(0, "x"), "bernoulli", first_free=1)) == {(True, True)}


@pytest.mark.numerical
def test_starts_of_the_logits() -> None:
    assert torch.equal(policies().logits.detach(), torch.full((2, 8, 2), 0.5))
    assert torch.equal(policies().alpha(), torch.full((2, 8), 0.5))
    drawn = policies(logit_init="random").logits.detach()
    assert 5e-4 < float(drawn.std()) < 2e-3
    chosen = policies(logit_init="all_chosen", all_chosen_logit=-2.0)
    assert torch.equal(chosen.logits.detach()[0, 0], torch.tensor([0.0, -2.0]))
    assert chosen.alpha().detach().numpy() == pytest.approx(1 / (1 + math.exp(-2)))


# Losses


def test_sparsity_at_one_half() -> None:
    """T10."""
    half = torch.full((2, 8, 2), 0.5, dtype=torch.float64)
    for n in range(1, 9):
        assert float(official_sparsity(half, slice(8 - n, None))) == pytest.approx(1.386294, abs=1e-6)
    assert float(paper_sparsity(half)) == pytest.approx(-11.090355, abs=1e-6)


@pytest.mark.parametrize("n", [1, 3, 8])
def test_sparsity_is_a_mean_over_unlocked_units_alone(n: int) -> None:
    """T11."""
    a = torch.full((2, 8, 2), 0.5, dtype=torch.float64, requires_grad=True)
    official_sparsity(a, slice(8 - n, None)).backward()
    assert torch.equal(a.grad[:, : 8 - n], torch.zeros(2, 8 - n, 2, dtype=torch.float64))
    assert a.grad[:, 8 - n :, 0].numpy() == pytest.approx(0.5 / n)
    assert a.grad[:, 8 - n :, 1].numpy() == pytest.approx(-0.5 / n)


@given(st.lists(st.floats(-4, 4), min_size=4, max_size=4), st.sampled_from([1, 2]))
def test_gradients_of_the_sparsity_forms(values: list[float], n: int) -> None:
    """2.6: official (+alpha/n, -alpha/n); paper (1 - alpha, -(1 - alpha)), and values by the definitions."""
    start = torch.tensor(values, dtype=torch.float64).reshape(1, 2, 2)
    alpha = execute_probabilities(start)
    a = start.clone().requires_grad_(True)
    official = official_sparsity(a, slice(2 - n, None))
    assert float(official.detach()) == pytest.approx(float(-torch.log(1 - alpha[:, 2 - n :]).mean()))
    official.backward()
    assert a.grad[0, 2 - n :, 0].numpy() == pytest.approx((alpha[0, 2 - n :] / n).numpy())
    b = start.clone().requires_grad_(True)
    paper = paper_sparsity(b)
    assert float(paper.detach()) == pytest.approx(float(torch.log(alpha).sum()))
    paper.backward()
    assert b.grad[0, :, 0].numpy() == pytest.approx((1 - alpha[0]).numpy())
    assert b.grad[0, :, 1].numpy() == pytest.approx((alpha[0] - 1).numpy())


@pytest.mark.numerical
def test_sharing_forms_by_hand() -> None:
    """T13."""
    a = logits([[1, 2], [0, 0]])
    assert float(official_sharing(a)) == pytest.approx(2.5)
    assert float(paper_sharing(a)) == pytest.approx(0.115529, abs=1e-6)
    raised = a.clone()
    raised[0] += 3
    assert float(official_sharing(raised)) == pytest.approx(2.5 + 4.5)
    assert float(paper_sharing(raised)) == pytest.approx(0.115529, abs=1e-6)


def test_each_pair_of_tasks_counts_once() -> None:
    """T14."""
    assert float(official_sharing(logits([[0], [1], [3]]))) == 6
    assert float(official_sharing(logits([[5, 5]]))) == 0  # one task has nobody to differ from


@given(st.integers(1, 5), st.integers(1, 6), st.integers(0, 1000))
def test_sharing_forms_equal_their_double_sums(n_tasks: int, n_units: int, seed: int) -> None:
    a = torch.randn(n_tasks, n_units, 2, generator=generator(seed, "x"), dtype=torch.float64)
    z, alpha = a[..., 0].tolist(), execute_probabilities(a).tolist()
    pairs = [(i, j, u) for i in range(n_tasks) for j in range(i) for u in range(n_units)]
    official = sum((u + 1) / n_units * abs(z[i][u] - z[j][u]) for i, j, u in pairs)
    paper = sum((n_units - u - 1) / n_units * abs(alpha[i][u] - alpha[j][u]) for i, j, u in pairs)
    assert float(official_sharing(a)) == pytest.approx(official, abs=1e-12)
    assert float(paper_sharing(a)) == pytest.approx(paper, abs=1e-12)


@pytest.mark.numerical
def test_the_penalty_is_the_weighted_sum_of_the_variant() -> None:
    start = torch.randn(3, 8, 2, generator=generator(0, "x"))
    for variant, sparsity, sharing in (
        ("official", official_sparsity(start, slice(5, None)), official_sharing(start)),
        ("paper", paper_sparsity(start), paper_sharing(start)),
    ):
        made = policies(3, variant=variant, curriculum_speed=1, sparsity_weight=0.3, sharing_weight=0.2)
        made.logits.data.copy_(start)
        made.unlock(2, 100)
        assert made.n == 3
        assert float(made.penalty().detach()) == pytest.approx(float(0.3 * sparsity + 0.2 * sharing), rel=1e-6)


def test_the_variant_names_both_forms_and_single_keys_override_it() -> None:
    assert (params().sparsity_form, params().sharing_form) == ("neg_log_skip_mean", "l1_logit_deep")
    paper = params(variant="paper")
    assert (paper.sparsity_form, paper.sharing_form) == ("log_alpha_sum", "l1_prob_shallow")
    mixed = params(variant="paper", sharing_form="l1_logit_deep")
    assert (mixed.sparsity_form, mixed.sharing_form) == ("log_alpha_sum", "l1_logit_deep")


# Logits under their optimizer: Adam with weight decay inside the gradient


@pytest.mark.numerical
def test_where_sparsity_and_coupled_weight_decay_come_to_rest() -> None:
    """T12: A -> (-a, a) with (w/n) sigmoid(-2a) = 5e-4 a; decoupled or absent decay ends elsewhere."""
    cases = [(0.05, 8, 0.9083), (0.05, 1, 0.9804), (0.01, 16, 0.6865), (0.001, 16, 0.5294)]
    made = [policies(1, n, sparsity_weight=w, sharing_weight=0, curriculum=False) for w, n, _ in cases]
    # Units of one case are alike, so one of them stands for all; Adam works element by element.
    optimizer = torch.optim.Adam([p.logits for p in made], lr=0.01, weight_decay=5e-4)
    for _ in range(1000):  # at rest within the tolerance; the trap asks for about 8000
        optimizer.zero_grad()
        torch.stack([p.penalty() for p in made]).sum().backward()
        optimizer.step()
    for case, (w, n, expected) in zip(made, cases, strict=True):
        skip = 1 - float(case.alpha()[0, 0].detach())
        assert skip == pytest.approx(expected, abs=1e-3)
        a = scipy.optimize.brentq(lambda a, w=w, n=n: w / n / (1 + math.exp(2 * a)) - 5e-4 * a, 0, 20)
        assert 1 / (1 + math.exp(-2 * a)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.numerical
def test_locked_logits_only_feel_weight_decay() -> None:
    """T17: both columns shrink together, so alpha stays exactly 1/2, also under the sharing loss."""
    made = policies(2, 8, sharing_weight=1.0)
    made.unlock(0, 20)
    optimizer = torch.optim.Adam([made.logits], lr=0.01, weight_decay=5e-4)
    for step in range(1, 11):
        optimizer.zero_grad()
        made.penalty().backward()
        optimizer.step()
        locked = made.logits.detach()[:, :7]
        assert torch.equal(made.alpha().detach()[:, :7], torch.full((2, 7), 0.5))
        if step in (1, 10):
            expected = {1: 0.4900, 10: 0.4008}[step]
            assert locked.numpy() == pytest.approx(expected, abs=1e-4)
    assert float(made.alpha().detach()[0, 7]) < 0.5


def test_sharing_pulls_policies_together() -> None:
    """T29c: start logits of equal sign per unit end within 5 learning rates, so their argmax is one policy."""
    made = policies(2, 8, sharing_weight=100, sparsity_weight=0, policy_draw="argmax")
    signs = torch.tensor([1.0, -1, 1, 1, -1, -1, 1, -1])
    made.logits.data[0, :, 0], made.logits.data[1, :, 0] = 1.5 * signs, 0.5 * signs
    made.logits.data[..., 1] = 0
    made.unlock(20, 20)
    optimizer = torch.optim.Adam([made.logits], lr=0.01, weight_decay=5e-4)
    for _ in range(250):
        optimizer.zero_grad()
        made.penalty().backward()
        optimizer.step()
    z = made.logits.detach()[..., 0]
    assert float((z[0] - z[1]).abs().max()) <= 0.05
    first, second = draw_policy(made.alpha().detach(), generator(0, "x"), "argmax")
    assert first == second == tuple((signs > 0).tolist())


# Parameters


def test_published_takes_what_the_preset_says_and_single_values_override_it() -> None:
    made = params(**PUBLISHED)
    assert (made.sparsity_weight, made.sharing_weight, made.curriculum_speed) == (0.001, 0.05, 3)
    assert (made.n_policies, made.batch_norm, made.tau_end) == (8, "shared", None)
    assert made.published is not None
    assert (made.published.search_steps, made.published.lr_head, made.published.w_steps) == (20000, 1e-3, "epoch")
    other = params(recipe="published", published={"preset": "domainnet", "search_steps": 9000}, n_policies=2)
    assert (other.batch_norm, other.n_policies, other.published.search_steps) == ("per_task", 2, 9000)
    assert other.published.search_weight_optimizer == "adam"
    assert AdaShareParams(**made.model_dump(mode="json")) == made  # what a cell's document holds comes back


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"n_policies": 8}, "one final network"),
        ({"recipe": "published"}, "belong together"),
        ({"published": {"preset": "domainnet"}}, "belong together"),
        ({"tau_end": 6.0}, "below tau_start"),
        ({"random_size": [10, 10]}, "random_policy"),
        ({"random_size": [10, 10], "random_policy": True, "retrain_init": "search"}, "no weights"),
        ({**PUBLISHED, "policy_draw": "argmax", "n_policies": 2}, "one policy"),
        ({**PUBLISHED, "retrain_init": "search", "n_policies": 2}, "set n_policies to 1"),
        ({"recipe": "published", "published": {"preset": "domainnet", "search_steps": 4000}}, "must exceed"),
        ({"recipe": "published", "published": {"preset": "domainet"}}, "domainnet"),
        ({"tau_decay": 1.5}, "less than or equal to 1"),
        ({"n_cycles": 1}, "greater than or equal to 2"),
    ],
)
def test_what_does_not_fit_together_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        params(**values)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_hold_together(name: str) -> None:
    preset = PRESETS[name]
    assert set(preset.task_weights) == set(preset.channels)
    assert len(preset.task_weights) == {"nyu_v2_3task": 3, "taskonomy_5task": 5, "domainnet": 6}.get(name, 2)
    assert preset.warmup_steps * 5 == preset.search_steps  # 3: a fifth in all five
