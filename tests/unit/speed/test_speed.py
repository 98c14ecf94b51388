"""How networks are timed (measurement 3, tests T1-T4), with scripted clocks: no test here looks at real time."""

from __future__ import annotations

import functools
import gc
import itertools
from collections.abc import Callable, Mapping, Sequence
from unittest import mock

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from benchmark.records.measurements import is_noisy, same_speed_within
from benchmark.speed.measure import Sampled, measure_pairs, measure_slots, step_times
from benchmark.speed.timing import (
    Contest,
    Failure,
    Network,
    ReferenceFailedError,
    SpeedProtocol,
    WarmUp,
    WarmUpRule,
    abba_pairs,
    residency,
    slots,
    steps_per_slot,
    warm_up,
)
from tests.perf.abba import PairedRatio, ratio

MS = 1_000_000
QUICK = WarmUpRule(steps=1, seconds=0.0, limit_s=0.0)
quick = functools.partial(SpeedProtocol, slot_s=1e-9, warm_up=QUICK)


class Clock:
    """A clock that only calls advance. share: of the time that the process itself has the core."""

    def __init__(self, share: float = 1.0) -> None:
        self.now, self.share = 0, share

    def __call__(self) -> int:
        return self.now

    def process(self) -> int:
        return round(self.now * self.share)

    def call(self, *times_ms: float) -> Callable[[], None]:
        """A call that takes these times, one after another, from the start again at the end."""
        times = itertools.cycle(times_ms)

        def step() -> None:
            self.now += round(next(times) * MS)

        return step

    def network(self, *times_ms: float, images: int = 1, predictions: int = 1) -> Network:
        return Network(self.call(*times_ms), images, predictions)

    def contest(self, networks: Mapping[str, Network], *times_ms: float, images: int = 1) -> Contest[Network]:
        """The networks with two references that take these times, one millisecond where none is said."""
        reference, copy = (self.network(*(times_ms or (1,)), images=images) for _ in range(2))
        return Contest(reference, copy, networks)


def recorder(log: list[str], name: str) -> Callable[[], None]:
    return lambda: log.append(name)


# T1: the median of ratios, not a ratio of medians


def test_t1_by_pairs() -> None:
    # Calls in order: ref A A ref, ref ref' ref' ref, then half a group of each: ref A, ref ref'.
    clock = Clock()
    reference = clock.call(1000 / 1000, 1000 / 500, 1, 1, 1000 / 800, 1)
    method = clock.call(1000 / 400, 1000 / 300, 1000 / 280)
    run = abba_pairs(Contest(reference, clock.call(1), {"A": method}), 3, clock=clock)
    measured = run.networks["A"].time_ratios()
    assert measured == pytest.approx([0.4, 0.6, 0.35], abs=1e-6)
    assert float(np.median(measured)) == pytest.approx(0.40, abs=1e-6)
    rates = [[1e9 / t for t in times] for times in (run.networks["A"].network_ns, run.networks["A"].reference_ns)]
    assert np.median(rates[0]) / np.median(rates[1]) == pytest.approx(0.375, abs=1e-6)  # what r is not
    assert np.mean(measured) == pytest.approx(0.45, abs=1e-6)


def test_t1_by_slots() -> None:
    clock, device = Clock(), RecordingDevice()
    steps = 20
    reference = clock.network(*round_times((1000, 500, 800), steps))
    method = clock.network(*round_times((400, 300, 280), steps))
    measured = measure_slots(
        Contest(reference, clock.network(1.0), {"A": method}), device, quick(rounds=3), clock=clock
    )
    result = measured.networks["A"]
    assert isinstance(result, Sampled)
    assert result.ratios == pytest.approx([0.4, 0.6, 0.35], abs=1e-5)
    assert result.r == pytest.approx(0.40, abs=1e-5)
    assert result.images_per_s.median == pytest.approx(300, rel=1e-5)
    assert (result.images_per_s.low, result.images_per_s.high) == pytest.approx((280, 400), rel=1e-5)


def round_times(rates: Sequence[float], steps: int) -> list[float]:
    """One step of warm-up, then 3 untimed and `steps` timed ones a round."""
    return [1.0, *(1000 / rate for rate in rates for _ in range(3 + steps))]


# T2: order of calls, synchronisations


class Marked:
    def __init__(self, device: RecordingDevice) -> None:
        self.device, self.at = device, 0.0

    def record(self) -> None:
        self.device.log.append("mark")
        self.at = self.device.now_ms()

    def elapsed_time(self, end_event: Marked) -> float:
        return end_event.at - self.at


class RecordingDevice:
    total_bytes = 1000

    def __init__(self, now_ms: Callable[[], float] | None = None) -> None:
        self.log: list[str] = []
        ticks = itertools.count()
        self.now_ms = now_ms or (lambda: float(next(ticks)))
        self.peak = 0

    def synchronize(self) -> None:
        self.log.append("sync")

    def marks(self, n: int) -> list[Marked]:
        self.log.append("allocate")
        return [Marked(self) for _ in range(n)]

    def reset_peak(self) -> None:
        self.peak = 0

    def peak_bytes(self) -> int:
        return self.peak


def test_t2_slots_keep_the_order_and_wait_twice_each() -> None:
    device = RecordingDevice()
    log = device.log
    names = ("ref", "A", "B", "ref'")
    networks = {name: Network(recorder(log, name), 1, 1) for name in names}
    run = slots(Contest.of(networks), dict.fromkeys(networks, 4), device, 3)
    one_round = [
        part for name in names for part in (*[name] * 3, "allocate", "sync", "mark", *[name, "mark"] * 4, "sync")
    ]
    assert log == one_round * 3
    assert log.count("sync") == 24
    assert len(run.networks["A"]) == len(run.networks["B"]) == len(run.copy) == len(run.reference) == 3
    assert [len(slot.step_ms) for slot in run.networks["A"]] == [4, 4, 4]


def test_t2_pairs_keep_the_order() -> None:
    log: list[str] = []
    clock = Clock()

    def call(name: str) -> Callable[[], None]:
        def step() -> None:
            log.append(name)
            clock.now += MS

        return step

    run = abba_pairs(Contest(call("ref"), call("ref'"), {"A": call("A"), "B": call("B")}), 4, clock=clock)
    group = ["ref", "A", "A", "ref", "ref", "B", "B", "ref", "ref", "ref'", "ref'", "ref"]
    assert log == group * 2
    assert [len(times.time_ratios()) for times in (*run.networks.values(), run.copy)] == [4, 4, 4]


def test_warm_up_and_untimed_steps_are_outside_of_the_clock() -> None:
    clock = Clock()
    device = RecordingDevice(lambda: clock.now / MS)
    # One slow step of warm-up and three slow untimed ones a slot, then 20 steps of 2 ms.
    method = clock.network(500, *[100, 100, 100, *[2] * 20] * 2)
    measured = measure_slots(clock.contest({"A": method}), device, quick(rounds=2), clock=clock)
    result = measured.networks["A"]
    assert isinstance(result, Sampled)
    assert result.images_per_s.median == pytest.approx(500)
    assert (result.step_ms.median, result.step_ms.iqr) == (2, 0)


# T3: out of memory is a result


def test_t3_out_of_memory_is_tried_once_and_the_others_go_on() -> None:
    clock, calls = Clock(), []

    def too_large() -> None:
        calls.append(32)
        raise MemoryError("tried to allocate 32 images")

    networks = {"A": Network(too_large, 32, 32), "B": clock.network(1.0, images=32)}
    measured = measure_pairs(clock.contest(networks), quick(pairs=4), clock=clock)
    assert measured.networks["A"] == Failure("oom", "MemoryError: tried to allocate 32 images")
    assert calls == [32]
    assert isinstance(measured.networks["B"], Sampled)


def test_a_network_that_fails_half_way_is_dropped() -> None:
    clock = Clock()
    calls = itertools.count()

    def later() -> None:
        clock.now += MS
        if next(calls) == 3:
            raise ValueError("now")

    run = abba_pairs(Contest(clock.call(1), clock.call(1), {"A": later, "B": clock.call(2)}), 6, clock=clock)
    assert run.failures == {"A": Failure("failed", "ValueError: now")}
    assert len(run.networks["B"].time_ratios()) == 6
    assert next(calls) == 4


def test_without_the_reference_there_is_no_measurement() -> None:
    def gone() -> None:
        raise MemoryError

    clock = Clock()
    with pytest.raises(ReferenceFailedError) as error:
        measure_pairs(Contest(Network(gone, 1, 1), clock.network(1), {"A": clock.network(1)}), quick(), clock=clock)
    assert error.value.failure.status == "oom"
    with pytest.raises(ReferenceFailedError):
        abba_pairs(Contest(clock.call(1), gone, {}), 2, clock=clock)


# T4: images, predictions, warm-up


def test_t4_images_and_predictions_without_the_warm_up() -> None:
    clock = Clock()
    slow = itertools.chain([50.0] * 10, itertools.repeat(5.0))

    def step() -> None:
        clock.now += round(next(slow) * MS)

    method = Network(step, images=4, predictions=12)
    measured = measure_pairs(clock.contest({"A": method}, 5, images=4), SpeedProtocol(), clock=clock)
    result = measured.networks["A"]
    assert isinstance(result, Sampled)
    assert result.images_per_s.median == pytest.approx(800)
    assert result.predictions_per_s == pytest.approx(2400)
    assert result.step_ms.median == pytest.approx(5)
    assert result.r == pytest.approx(1)
    assert result.flags == ()
    assert result.warm_up.steps >= 10


def test_a_step_over_several_batches_is_compared_by_images() -> None:
    """Mixed mode: a step of T batches takes as long as T steps of the reference at equal speed."""
    clock = Clock()
    mixed = clock.network(15, images=24, predictions=24)
    measured = measure_pairs(clock.contest({"A": mixed}, 5, images=8), quick(pairs=4), clock=clock)
    result = measured.networks["A"]
    assert isinstance(result, Sampled)
    assert result.r == pytest.approx(1)
    assert result.images_per_s.median == pytest.approx(1600)


# Warm-up


def test_warm_up_takes_ten_steps_and_two_seconds() -> None:
    clock = Clock()
    fast = warm_up({"A": clock.call(10)}, WarmUpRule(), clock)["A"]
    assert fast == WarmUp(steps=200, median_ns=10 * MS, stable=True)
    clock = Clock()
    slow = warm_up({"A": clock.call(1000)}, WarmUpRule(), clock)["A"]
    assert slow == WarmUp(steps=20, median_ns=1000 * MS, stable=True)  # two groups to compare


def test_warm_up_goes_on_until_two_groups_agree() -> None:
    clock = Clock()
    times = itertools.chain(*([value] * 10 for value in (400, 300, 200, 100)), itertools.repeat(98))

    def step() -> None:
        clock.now += next(times) * MS

    assert warm_up({"A": step}, WarmUpRule(), clock)["A"] == WarmUp(50, 98 * MS, stable=True)


def test_warm_up_that_never_settles_is_unstable_after_thirty_seconds() -> None:
    clock = Clock()
    times = itertools.chain.from_iterable([value] * 10 for value in itertools.cycle((100, 200)))

    def step() -> None:
        clock.now += next(times) * MS

    result = warm_up({"A": step}, WarmUpRule(), clock)["A"]
    assert isinstance(result, WarmUp)
    assert not result.stable
    assert 30_000 * MS <= clock.now <= 30_200 * MS
    very_slow = warm_up({"A": Clock().call(1)}, WarmUpRule(steps=10, seconds=0, limit_s=0), lambda: 10**12)["A"]
    assert isinstance(very_slow, WarmUp)
    assert very_slow.steps == 10  # the steps asked for are made in any case


def test_a_shared_warm_up_counts_its_seconds_for_the_whole() -> None:
    clock = Clock()
    calls = {name: clock.call(10) for name in "ABCD"}
    results = warm_up(calls, WarmUpRule(shared=True), clock)
    assert [result.steps for result in results.values() if isinstance(result, WarmUp)] == [60, 60, 60, 50]
    assert clock.now == 2300 * MS  # not 8 s; three of four were a step short of 2 s when their fifth group ended


@pytest.mark.parametrize(("shared", "seconds"), [(False, 6), (True, 2)])
def test_networks_are_warmed_up_one_after_another_unless_they_share(shared: bool, seconds: float) -> None:
    clock = Clock()
    networks = {"A": clock.network(10)}
    rule = WarmUpRule(shared=shared)
    measure_pairs(clock.contest(networks, 10), SpeedProtocol(pairs=2, warm_up=rule), clock=clock)
    assert seconds <= (clock.now - 8 * 10 * MS) / 1e9 <= seconds + 0.3


def test_unstable_networks_are_flagged() -> None:
    clock = Clock()
    rule = WarmUpRule(steps=10, seconds=0, limit_s=0.1)
    wild = clock.network(*[1] * 10, *[3] * 10)
    measured = measure_pairs(clock.contest({"A": wild}), SpeedProtocol(pairs=2, warm_up=rule), clock=clock)
    assert measured.networks["A"].flags == ("unstable",)  # type: ignore[union-attr]
    assert measured.reference.flags == ()


# Flags of a measurement


def test_two_copies_that_differ_make_a_measurement_noisy() -> None:
    clock = Clock()
    measured = measure_pairs(Contest(clock.network(1), clock.network(1.04), {}), quick(pairs=4), clock=clock)
    assert measured.aa == pytest.approx(1 / 1.04)
    assert "noisy" in measured.flags
    assert not is_noisy(1.03 - 1e-9)
    assert is_noisy(0.96)
    assert same_speed_within(1.01) == pytest.approx(0.03)
    assert same_speed_within(0.95) == pytest.approx(0.10)


@pytest.mark.parametrize(("share", "threads", "flagged"), [(0.89, 1, True), (0.91, 1, False), (0.5, 2, False)])
def test_a_core_that_was_taken_away_is_said(share: float, threads: int, flagged: bool) -> None:
    clock = Clock(share)
    measured = measure_pairs(
        clock.contest({}), quick(pairs=10), threads=threads, clock=clock, process_clock=clock.process
    )
    assert ("contended" in measured.flags) == flagged
    assert measured.cpu_share == pytest.approx(share)


def test_no_garbage_is_collected_while_the_clock_runs() -> None:
    enabled: list[bool] = []
    assert gc.isenabled()
    clock = Clock()

    def step() -> None:
        clock.now += MS
        enabled.append(gc.isenabled())

    abba_pairs(Contest(step, step, {"A": step}), 2, clock=clock)
    assert enabled
    assert not any(enabled)
    assert gc.isenabled()
    with pytest.raises(ReferenceFailedError):
        abba_pairs(Contest(lambda: 1 / 0, step, {}), 2, clock=clock)
    assert gc.isenabled()


def test_calls_too_short_for_the_clock_are_an_error() -> None:
    calls = Contest(lambda: None, lambda: None, {"A": lambda: None})
    run = abba_pairs(calls, 2, clock=lambda: 7)
    with pytest.raises(ValueError, match="took no time"):
        run.networks["A"].time_ratios()
    with pytest.raises(ValueError, match="at least one"):
        abba_pairs(calls, 0)


# CUDA's own


def test_a_network_that_the_host_cannot_feed_is_host_bound() -> None:
    def measured(host_ms: float) -> tuple[str, ...]:
        clock = Clock()
        ticks = itertools.count(0, 10)  # a step takes 10 ms on the device
        device = RecordingDevice(lambda: float(next(ticks)))
        run = measure_slots(
            clock.contest({"A": clock.network(host_ms)}), device, SpeedProtocol(rounds=1, warm_up=QUICK), clock=clock
        )
        result = run.networks["A"]
        assert isinstance(result, Sampled)
        return result.flags

    assert "host_bound" in measured(8.1)
    assert "host_bound" not in measured(7.9)


def test_slots_last_a_second_within_bounds() -> None:
    assert steps_per_slot(5 * MS) == 200
    assert steps_per_slot(500 * MS) == 20
    assert steps_per_slot(MS / 100) == 2000


def test_networks_stay_on_the_device_where_they_fit_in_sixty_per_cent() -> None:
    def network(owner: str, weights: int) -> Network:
        return Network(lambda: None, 1, 1, owner=owner, weights_bytes=weights)

    parts = [network("a", 200), network("a", 200), network("b", 300)]  # two modes of one network share its weights
    assert residency(parts, [40, 100, 60], 1000) == "all"
    assert residency(parts, [40, 101, 60], 1000) == "moved"


@pytest.mark.parametrize(("peak", "expected"), [(0, "all"), (700, "moved")])
def test_what_does_not_fit_is_moved_outside_of_the_clock(peak: int, expected: str) -> None:
    clock = Clock()
    device = RecordingDevice(lambda: clock.now / MS)
    log = device.log

    def step() -> None:
        device.peak = peak
        clock.now += MS

    def load() -> None:
        log.append("load")
        clock.now += 1000 * MS  # would show in the wall time

    networks = {name: Network(step, 1, 1, load, recorder(log, "unload")) for name in "AB"}
    measured = measure_slots(clock.contest(networks), device, quick(rounds=2), clock=clock)
    assert measured.residency == expected
    for result in measured.networks.values():
        assert isinstance(result, Sampled)
        assert result.images_per_s.median == pytest.approx(1000)
    loads = 2 + (2 * 2 if expected == "moved" else 2)  # warm-up, then once a slot or once for all
    assert log.count("load") == loads
    assert log.count("unload") == 2 + (4 if expected == "moved" else 0)


def test_networks_that_do_not_fit_after_all_are_moved() -> None:
    clock = Clock()
    device = RecordingDevice(lambda: clock.now / MS)
    loaded: set[str] = set()

    def load(name: str) -> None:
        if loaded - {name}:
            raise MemoryError("one at a time")
        loaded.add(name)

    def network(name: str) -> Network:
        return Network(clock.call(1), 1, 1, lambda: load(name), lambda: loaded.discard(name))

    measured = measure_slots(
        Contest(network("ref"), network("copy"), {"A": network("A")}), device, quick(rounds=1), clock=clock
    )
    assert measured.residency == "moved"
    assert isinstance(measured.networks["A"], Sampled)


def test_a_network_that_cannot_be_loaded_is_out_of_memory() -> None:
    clock = Clock()
    device = RecordingDevice(lambda: clock.now / MS)

    def load() -> None:
        raise MemoryError("weights")

    networks = {"A": Network(clock.call(1), 1, 1, load), "B": clock.network(1)}
    measured = measure_slots(clock.contest(networks), device, quick(rounds=1), clock=clock)
    assert measured.networks["A"] == Failure("oom", "MemoryError: weights")
    assert isinstance(measured.networks["B"], Sampled)


# Summaries


def test_latency_by_hand() -> None:
    times = step_times([1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0, 8.0, 9.0, 10.0, 11.0])
    assert (times.median, times.p10, times.p90, times.iqr) == (6, 2, 10, 5)


@given(st.lists(st.tuples(st.integers(1, 10**9), st.integers(1, 10**9)), min_size=1, max_size=20))
def test_scripted_times_come_back_pair_by_pair(pairs: list[tuple[int, int]]) -> None:
    """Whatever the order within a group, each pair holds the reference's and the network's call beside each other."""
    now = 0
    order: list[int] = []
    for position, (ref, own) in enumerate(pairs):
        order += [ref, own] if position % 2 == 0 else [own, ref]
        if position % 2 or position == len(pairs) - 1:
            order += [1] * (4 if position % 2 else 2)  # ref' and its reference
    script = iter(order)

    def step() -> None:
        nonlocal now
        now += next(script)

    with mock.patch("gc.collect"):  # takes longer than all else
        run = abba_pairs(Contest(step, step, {"A": step}), len(pairs), clock=lambda: now)
    assert list(zip(run.networks["A"].reference_ns, run.networks["A"].network_ns, strict=True)) == pairs
    assert next(script, None) is None


# The helper of tests/perf


def test_a_bound_is_broken_only_beyond_the_noise() -> None:
    assert PairedRatio(r=1.05, aa=1.0, bound=1.05).passes
    assert not PairedRatio(r=1.06, aa=1.0, bound=1.05).passes
    assert PairedRatio(r=1.06, aa=0.99, bound=1.05).passes
    assert not PairedRatio(r=1.08, aa=1.01, bound=1.05).passes


def test_the_perf_helper_gives_time_over_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture) -> None:
    clock = Clock()
    monkeypatch.setattr("tests.perf.abba.warm_up", lambda calls, rule: {})
    monkeypatch.setattr("tests.perf.abba.abba_pairs", lambda *args, **kwargs: abba_pairs(*args, **kwargs, clock=clock))
    found = ratio(clock.call(3), clock.call(2), bound=1.4, pairs=4)
    assert found.r == pytest.approx(1.5)
    assert found.aa == pytest.approx(1)
    assert not found.passes
    assert "A/A 1.000" in capsys.readouterr().out
    with pytest.raises(RuntimeError, match="candidate failed: ZeroDivisionError"):
        ratio(lambda: 1 / 0, clock.call(2), bound=1, pairs=2)


# The real device, where there is one


@pytest.mark.gpu
def test_slots_on_cuda() -> None:
    torch = pytest.importorskip("torch")
    if not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    from benchmark.speed.device import CudaDevice

    device = torch.device("cuda")
    layer, image = torch.nn.Conv2d(16, 16, 3).to(device), torch.randn(8, 16, 64, 64, device=device)
    network = Network(lambda: layer(image), 8, 8)
    protocol = SpeedProtocol(rounds=3, slot_s=0.01, warm_up=WarmUpRule(seconds=0.1, limit_s=2.0))
    measured = measure_slots(Contest(network, network, {"A": network}), CudaDevice(device), protocol)
    result = measured.networks["A"]
    assert isinstance(result, Sampled)
    assert len(result.ratios) == 3
    assert all(value > 0 for slot in result.raw["step_ms"] for value in slot)  # type: ignore[attr-defined]
    assert measured.residency == "all"
