"""One measurement: warm up, interleave, turn raw times into throughput, latency, ratios, flags. Spec: measurement 3."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from benchmark.records.measurements import Form, Spread, StepTimes, is_noisy
from benchmark.speed.timing import (
    CONTENDED_SHARE,
    COPY,
    HOST_BOUND_RATIO,
    REFERENCE,
    Clock,
    Contest,
    Device,
    Failure,
    Network,
    PairTimes,
    ReferenceFailedError,
    Residency,
    Slot,
    SpeedProtocol,
    WarmUp,
    WarmUpRule,
    abba_pairs,
    failure_of,
    residency,
    slots,
    steps_per_slot,
    warm_up,
)

_NS_PER_MS, _NS_PER_S = 1e6, 1e9


@dataclasses.dataclass(frozen=True)
class Sampled:
    """What was measured of one network. images, predictions: per step.

    ratios: images/s of it over images/s of ref in the same pair or round.
    raw: {name: list of numbers}, as the clock gave them.
    """

    images: int
    predictions: int
    images_per_s: Spread
    predictions_per_s: float
    step_ms: StepTimes
    ratios: tuple[float, ...]
    raw: Mapping[str, object]
    warm_up: WarmUp
    flags: tuple[str, ...]

    @property
    def r(self) -> float:
        """Relative throughput: the median ratio."""
        return statistics.median(self.ratios)


@dataclasses.dataclass(frozen=True)
class Measurement:
    """All networks of one measurement. copy: ref', measured like any of them; its r is the A/A ratio.

    cpu_share: process time over wall time, of the pairs form. residency: of the slots form.
    """

    form: Form
    reference: Sampled
    copy: Sampled
    networks: Mapping[str, Sampled | Failure]
    flags: tuple[str, ...]
    cpu_share: float | None = None
    residency: Residency | None = None

    @property
    def aa(self) -> float:
        """Throughput of ref' relative to ref: 1 where the machine is quiet."""
        return self.copy.r


def step_times(values_ms: Sequence[float]) -> StepTimes:
    """Median, 10 % and 90 % quantiles and interquartile range of times in milliseconds."""
    p10, p25, median, p75, p90 = np.quantile(values_ms, (0.1, 0.25, 0.5, 0.75, 0.9)).tolist()
    return StepTimes(median, p10, p90, iqr=p75 - p25)


# CPU


def measure_pairs(
    contest: Contest[Network],
    protocol: SpeedProtocol,
    *,
    threads: int = 1,
    clock: Clock = time.perf_counter_ns,
    process_clock: Clock = time.process_time_ns,
) -> Measurement:
    """Warm up and alternate single calls. Raises ReferenceFailedError where ref or ref' fails."""
    networks, reference, copy = contest.networks, contest.reference, contest.copy
    warm, failed = _warm_up_all(contest.named, protocol.warm_up, clock)
    calls = Contest.of({name: network.step for name, network in contest.named.items() if name in warm})
    run = abba_pairs(calls, protocol.pairs, clock=clock, process_clock=process_clock)
    failed |= run.failures
    sampled = {name: _of_pairs(networks[name], reference, times, warm[name]) for name, times in run.networks.items()}
    own = _of_pairs(copy, reference, run.copy, warm[COPY])
    flags = ["noisy"] if is_noisy(own.r) else []
    if threads == 1 and run.cpu_share < CONTENDED_SHARE:
        flags.append("contended")  # another process had the core for part of the time
    return Measurement(
        form="pairs",
        reference=_reference_of_pairs(reference, [*run.networks.values(), run.copy], warm[REFERENCE]),
        copy=own,
        networks={name: sampled.get(name) or failed[name] for name in networks},
        flags=tuple(flags),
        cpu_share=run.cpu_share,
    )


def _warm_up_all(
    networks: Mapping[str, Network], rule: WarmUpRule, clock: Clock
) -> tuple[dict[str, WarmUp], dict[str, Failure]]:
    calls = {name: network.step for name, network in networks.items()}
    parts = [calls] if rule.shared else [{name: call} for name, call in calls.items()]
    found: dict[str, WarmUp | Failure] = {}
    for part in parts:
        found |= warm_up(part, rule, clock)
    return _split(found)


def _split(found: Mapping[str, WarmUp | Failure]) -> tuple[dict[str, WarmUp], dict[str, Failure]]:
    failed = {name: result for name, result in found.items() if isinstance(result, Failure)}
    for name in (REFERENCE, COPY):
        if name in failed:
            raise ReferenceFailedError(failed[name])
    return {name: result for name, result in found.items() if isinstance(result, WarmUp)}, failed


def _of_pairs(network: Network, reference: Network, times: PairTimes, warm: WarmUp) -> Sampled:
    per_call = network.images / reference.images
    ratios = tuple(ratio * per_call for ratio in times.time_ratios())
    raw = {"reference_ns": list(times.reference_ns), "network_ns": list(times.network_ns)}
    return _of_calls(network, times.network_ns, ratios, raw, warm)


def _reference_of_pairs(reference: Network, parts: Iterable[PairTimes], warm: WarmUp) -> Sampled:
    """The reference over all its calls; their times stand beside the networks that they were paired with."""
    calls = [value for part in parts for value in part.reference_ns]
    return _of_calls(reference, calls, (1.0,), {}, warm)


def _of_calls(
    network: Network, calls_ns: Sequence[int], ratios: tuple[float, ...], raw: Mapping[str, object], warm: WarmUp
) -> Sampled:
    median = statistics.median(calls_ns)
    rate = _NS_PER_S / median
    return Sampled(
        images=network.images,
        predictions=network.predictions,
        images_per_s=Spread(
            network.images * rate,
            network.images * _NS_PER_S / max(calls_ns),
            network.images * _NS_PER_S / min(calls_ns),
        ),
        predictions_per_s=network.predictions * rate,
        step_ms=step_times([value / _NS_PER_MS for value in calls_ns]),
        ratios=ratios,
        raw=raw,
        warm_up=warm,
        flags=() if warm.stable else ("unstable",),
    )


# CUDA


def measure_slots(
    contest: Contest[Network],
    device: Device,
    protocol: SpeedProtocol,
    *,
    clock: Clock = time.perf_counter_ns,
) -> Measurement:
    """Warm up one network after another, decide who stays on the device, and give slots in turn.

    Raises ReferenceFailedError where ref or ref' fails.
    """
    networks, reference, copy = contest.networks, contest.reference, contest.copy
    found: dict[str, WarmUp | Failure] = {}
    peaks: dict[str, int] = {}
    for name, network in contest.named.items():
        found[name], peaks[name] = _warm_up_on(device, network, protocol.warm_up, clock)
    warm, failed = _split(found)
    ready = {name: contest.named[name] for name in warm}
    stays = residency(ready.values(), [peaks[name] for name in warm], device.total_bytes)
    if stays == "all":
        stays, ready = _loaded(ready)
    steps = {name: steps_per_slot(result.median_ns, protocol.slot_s) for name, result in warm.items()}
    run = slots(Contest.of(ready), steps, device, protocol.rounds, clock=clock)
    failed |= run.failures
    base = [reference.images * slot.n_steps / slot.wall_ns for slot in run.reference]
    sampled = {
        name: _of_slots(networks[name], found_slots, base, warm[name]) for name, found_slots in run.networks.items()
    }
    own = _of_slots(copy, run.copy, base, warm[COPY])
    return Measurement(
        form="slots",
        reference=_of_slots(reference, run.reference, base, warm[REFERENCE]),
        copy=own,
        networks={name: sampled.get(name) or failed[name] for name in networks},
        flags=("noisy",) if is_noisy(own.r) else (),
        residency=stays,
    )


def _warm_up_on(device: Device, network: Network, rule: WarmUpRule, clock: Clock) -> tuple[WarmUp | Failure, int]:
    """The warm-up with each step waited for, and the peak of memory beyond the network's weights."""

    def step() -> None:
        network.step()
        device.synchronize()

    try:
        network.load()
        device.reset_peak()
        result = warm_up({"": step}, rule, clock)[""]
        return result, max(0, device.peak_bytes() - network.weights_bytes)
    except MemoryError as error:  # the weights alone do not fit
        return failure_of(error), 0
    finally:
        network.unload()


def _loaded(networks: Mapping[str, Network]) -> tuple[Residency, dict[str, Network]]:
    """The networks on the device to stay; as they were, to be moved, where they do not fit after all."""
    try:
        for network in networks.values():
            network.load()
    except MemoryError:
        for network in networks.values():
            network.unload()
        return "moved", dict(networks)
    return "all", {name: dataclasses.replace(network, load=_stay, unload=_stay) for name, network in networks.items()}


def _stay() -> None:
    """Load and unload of a network that stays on the device."""


def _of_slots(network: Network, taken: Sequence[Slot], base: Sequence[float], warm: WarmUp) -> Sampled:
    """base: images/ns of the reference in each round."""
    rates = [slot.n_steps / slot.wall_ns for slot in taken]  # steps/ns
    steps_ms = [value for slot in taken for value in slot.step_ms]
    host = statistics.median([slot.enqueue_ns / _NS_PER_MS / statistics.median(slot.step_ms) for slot in taken])
    flags = [] if warm.stable else ["unstable"]
    if host > HOST_BOUND_RATIO:
        flags.append("host_bound")
    images = [network.images * rate * _NS_PER_S for rate in rates]
    return Sampled(
        images=network.images,
        predictions=network.predictions,
        images_per_s=Spread(statistics.median(images), min(images), max(images)),
        predictions_per_s=network.predictions * statistics.median(rates) * _NS_PER_S,
        step_ms=step_times(steps_ms),
        ratios=tuple(network.images * rate / ref for rate, ref in zip(rates, base, strict=True)),
        raw={
            "n_steps": [slot.n_steps for slot in taken],
            "wall_ns": [slot.wall_ns for slot in taken],
            "enqueue_ns": [slot.enqueue_ns for slot in taken],
            "step_ms": [list(slot.step_ms) for slot in taken],
        },
        warm_up=warm,
        flags=tuple(flags),
    )
