"""How networks are timed: interleaved with a reference, call by call on a CPU, slot by slot on CUDA. Measurement 3.

All of it is a protocol over callables with injected clocks; nothing imports torch. No time is reported alone: each
candidate is paired with the reference (ref) at the same moment, and a second copy of the reference (ref') is
measured like any candidate, so that its ratio to the first, the A/A ratio, says what the machine's noise is worth.
"""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import statistics
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Generic, Literal, Protocol, TypeVar

from benchmark.records.measurements import PAIRS, ROUNDS

Call = Callable[[], object]
Clock = Callable[[], int]  # nanoseconds

UNTIMED_STEPS = 3  # before a CUDA slot
SLOT_S, MIN_SLOT_STEPS, MAX_SLOT_STEPS = 1.0, 20, 2000
GROUP = 10  # steps whose medians are compared in the warm-up
CONTENDED_SHARE = 0.9  # process time / wall below it, at one thread: `contended`
HOST_BOUND_RATIO = 0.8  # host time of a step / device time of a step above it: `host_bound`
RESIDENT_SHARE = 0.6  # of the device's memory: above it, networks wait outside of the device
_SECOND = 1_000_000_000

Residency = Literal["all", "moved"]
T = TypeVar("T")
REFERENCE, COPY = "ref", "ref'"


def _nothing() -> None:
    """Load or unload of a network that is always in place."""


@dataclasses.dataclass(frozen=True)
class Network:
    """One network in one mode, ready to be called.

    step: one step; MemoryError where the device has no room for it. images, predictions: per step. load, unload: bring
    it to the device and away again. owner: networks of one owner share their weights; weights_bytes: of these.
    """

    step: Call
    images: int
    predictions: int
    load: Callable[[], None] = _nothing
    unload: Callable[[], None] = _nothing
    owner: str = ""
    weights_bytes: int = 0


@dataclasses.dataclass(frozen=True)
class Failure:
    """Why a network was not measured. It was tried once, at the batch asked for, never again with a smaller one."""

    status: Literal["oom", "failed"]
    message: str


def failure_of(error: Exception) -> Failure:
    """The failure that an exception stands for, in one line."""
    text = (str(error).strip() or type(error).__name__).splitlines()[0]
    return Failure("oom" if isinstance(error, MemoryError) else "failed", f"{type(error).__name__}: {text}"[:300])


class ReferenceFailedError(RuntimeError):
    """The reference itself could not be measured, so nothing else can be."""

    def __init__(self, failure: Failure) -> None:
        super().__init__(failure.message)
        self.failure = failure


# Warm-up


@dataclasses.dataclass(frozen=True)
class WarmUpRule:
    """At least `steps` steps and `seconds`, then until the medians of the last two groups of 10 steps differ by less
    than `tolerance`, at most `limit_s` (the steps asked for are made in any case).

    shared: all networks of a measurement take turns in one warm-up, whose seconds are counted for the whole of it.
    """

    steps: int = 10
    seconds: float = 2.0
    tolerance: float = 0.03
    limit_s: float = 30.0
    shared: bool = False


@dataclasses.dataclass(frozen=True)
class WarmUp:
    """steps: how many were made; median_ns: of the last group; stable: whether the last two groups agreed."""

    steps: int
    median_ns: float
    stable: bool


def warm_up(
    calls: Mapping[str, Call], rule: WarmUpRule, clock: Clock = time.perf_counter_ns
) -> dict[str, WarmUp | Failure]:
    """Call the networks in turn until each has met the rule; one that raises is a Failure and is not called again."""
    times: dict[str, list[int]] = {name: [] for name in calls}
    done: dict[str, WarmUp | Failure] = {}
    start = clock()
    while len(done) < len(calls):
        for name, call in calls.items():
            if name in done:
                continue
            begin = clock()
            try:
                call()
            except Exception as error:  # whatever a network does ends its own measurement, not that of the others
                done[name] = failure_of(error)
                continue
            end = clock()
            times[name].append(end - begin)
            elapsed = (end - start) / _SECOND
            if len(times[name]) < rule.steps or elapsed < rule.seconds:
                continue
            stable = _is_stable(times[name], rule.tolerance)
            if stable or elapsed >= rule.limit_s:
                done[name] = WarmUp(len(times[name]), statistics.median(times[name][-GROUP:]), stable)
    return {name: done[name] for name in calls}


def _is_stable(times: Sequence[int], tolerance: float) -> bool:
    """Whether a group of steps has just ended whose median is that of the group before it."""
    if len(times) < 2 * GROUP or len(times) % GROUP:
        return False
    before, last = statistics.median(times[-2 * GROUP : -GROUP]), statistics.median(times[-GROUP:])
    return abs(last - before) < tolerance * before


@contextlib.contextmanager
def no_garbage_collection() -> Iterator[None]:
    """Within the block Python collects no cycles; what there was to collect is collected before."""
    enabled = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


@dataclasses.dataclass(frozen=True)
class SpeedProtocol:
    """How often and how long. pairs: on a CPU, per network; rounds and slot_s: on CUDA."""

    pairs: int = PAIRS
    rounds: int = ROUNDS
    slot_s: float = SLOT_S
    warm_up: WarmUpRule = dataclasses.field(default_factory=WarmUpRule)


@dataclasses.dataclass(frozen=True)
class Contest(Generic[T]):
    """What takes turns: the reference (ref), a second copy of it (ref'), and the networks by name."""

    reference: T
    copy: T
    networks: Mapping[str, T]

    @classmethod
    def of(cls, named: Mapping[str, T]) -> Contest[T]:
        """The contest whose `named` these are."""
        others = {name: part for name, part in named.items() if name not in (REFERENCE, COPY)}
        return cls(named[REFERENCE], named[COPY], others)

    @property
    def named(self) -> dict[str, T]:
        """All by name, `ref` and `ref'` among them."""
        return {REFERENCE: self.reference, COPY: self.copy, **self.networks}


# CPU: pairs of single calls


@dataclasses.dataclass(frozen=True)
class PairTimes:
    """Times of the pairs of one network, in order: the reference's call and the network's own beside it."""

    reference_ns: tuple[int, ...]
    network_ns: tuple[int, ...]

    def time_ratios(self) -> list[float]:
        """t_ref / t_network of each pair. Raises ValueError where a call was too short for the clock."""
        if not all(self.network_ns) or not all(self.reference_ns):
            raise ValueError("A call took no time on this clock; time several of them as one.")
        return [ref / own for ref, own in zip(self.reference_ns, self.network_ns, strict=True)]


@dataclasses.dataclass(frozen=True)
class PairedRun:
    """networks: {name: its pairs}; copy: those of ref'; cpu_share: process time / wall time; failures: by name."""

    networks: Mapping[str, PairTimes]
    copy: PairTimes
    cpu_share: float
    failures: Mapping[str, Failure]


class _Pairs:
    """The pairs of one network while they are taken."""

    def __init__(self, reference: Call, network: Call, clock: Clock) -> None:
        self.reference, self.network, self.clock = reference, network, clock
        self.reference_ns: list[int] = []
        self.network_ns: list[int] = []

    def take(self, *, reference_first: bool) -> None:
        """One pair, in this order."""
        if reference_first:
            reference_ns, network_ns = self._time(self.reference), self._time(self.network)
        else:
            network_ns, reference_ns = self._time(self.network), self._time(self.reference)
        self.reference_ns.append(reference_ns)
        self.network_ns.append(network_ns)

    def _time(self, call: Call) -> int:
        clock = self.clock
        begin = clock()
        call()
        return clock() - begin

    def times(self) -> PairTimes:
        return PairTimes(tuple(self.reference_ns), tuple(self.network_ns))


def abba_pairs(
    calls: Contest[Call],
    pairs: int = PAIRS,
    *,
    clock: Clock = time.perf_counter_ns,
    process_clock: Clock = time.process_time_ns,
) -> PairedRun:
    """Single calls in ABBA order: ref A A ref | ref B B ref | ref ref' ref' ref | again from A; each half is a pair.

    A network that raises is not called again and stands under `failures`; ReferenceFailedError where ref or ref'
    raises.
    """
    if pairs < 1:
        raise ValueError(f"{pairs} pairs; at least one is needed.")
    taken = {name: _Pairs(calls.reference, network, clock) for name, network in calls.networks.items()}
    own = _Pairs(calls.reference, calls.copy, clock)
    failures: dict[str, Failure] = {}
    with no_garbage_collection():
        wall, process = clock(), process_clock()
        for first in range(0, pairs, 2):
            halves = (True, False)[: pairs - first]  # an odd number of pairs ends with half a group
            for name, part in taken.items():
                if name not in failures:
                    _take(part, halves, name, failures)
            _take(own, halves, None, failures)
        wall, process = clock() - wall, process_clock() - process
    good = {name: part.times() for name, part in taken.items() if name not in failures}
    return PairedRun(good, own.times(), process / wall if wall else 1.0, failures)


def _take(part: _Pairs, halves: Iterable[bool], name: str | None, failures: dict[str, Failure]) -> None:
    try:
        for reference_first in halves:
            part.take(reference_first=reference_first)
    except Exception as error:  # as in the warm-up
        if name is None:
            raise ReferenceFailedError(failure_of(error)) from error
        failures[name] = failure_of(error)


# CUDA: slots with events


class Mark(Protocol):
    """A point in the device's stream of work, as torch.cuda.Event."""

    def record(self) -> object:
        """Put it at the end of what is enqueued."""

    def elapsed_time(self, end_event: Mark) -> float:
        """Milliseconds on the device from this mark to a later one."""


class Device(Protocol):
    """What slots need of a device that works behind the host's back."""

    total_bytes: int

    def synchronize(self) -> None:
        """Wait until everything enqueued is done."""

    def marks(self, n: int) -> Sequence[Mark]:
        """This number of marks with timing."""

    def reset_peak(self) -> None:
        """Start a new measurement of peak memory."""

    def peak_bytes(self) -> int:
        """Peak of allocated memory since then."""


@dataclasses.dataclass(frozen=True)
class Slot:
    """One network's turn in one round. wall_ns: from one synchronisation to the other.

    enqueue_ns: what the host took to enqueue the first step after the synchronisation; step_ms: of each step, on the
    device.
    """

    n_steps: int
    wall_ns: int
    enqueue_ns: int
    step_ms: tuple[float, ...]


@dataclasses.dataclass(frozen=True)
class SlotRun:
    """Slots of every network, of the reference and of ref', one a round; failures: by name."""

    reference: tuple[Slot, ...]
    networks: Mapping[str, tuple[Slot, ...]]
    copy: tuple[Slot, ...]
    failures: Mapping[str, Failure]


def steps_per_slot(median_step_ns: float, slot_s: float = SLOT_S) -> int:
    """Steps that fill a slot: slot_s over the median step of the warm-up, between 20 and 2000."""
    fitting = int(slot_s * _SECOND / median_step_ns) if median_step_ns > 0 else MAX_SLOT_STEPS
    return min(max(fitting, MIN_SLOT_STEPS), MAX_SLOT_STEPS)


def slots(
    contest: Contest[Network],
    steps: Mapping[str, int],
    device: Device,
    rounds: int = ROUNDS,
    *,
    clock: Clock = time.perf_counter_ns,
) -> SlotRun:
    """In each round one slot for every network in the same order: ref, A, B, C, ref'.

    steps: of a slot, by name; ref' makes those of ref. Two synchronisations a slot, none in it. A network that raises
    gets no further slot and stands under `failures`; ReferenceFailedError where ref or ref' raises.
    """
    taken: dict[str, list[Slot]] = {name: [] for name in contest.networks}
    first: list[Slot] = []
    last: list[Slot] = []
    failures: dict[str, Failure] = {}
    with no_garbage_collection():
        for _ in range(rounds):
            first.append(_reference_slot(contest.reference, steps[REFERENCE], device, clock))
            for name, network in contest.networks.items():
                if name in failures:
                    continue
                try:
                    taken[name].append(_slot(network, steps[name], device, clock))
                except Exception as error:  # as in the warm-up
                    failures[name] = failure_of(error)
            last.append(_reference_slot(contest.copy, steps[REFERENCE], device, clock))
    good = {name: tuple(found) for name, found in taken.items() if name not in failures}
    return SlotRun(tuple(first), good, tuple(last), failures)


def _reference_slot(network: Network, n_steps: int, device: Device, clock: Clock) -> Slot:
    try:
        return _slot(network, n_steps, device, clock)
    except Exception as error:  # as in the warm-up
        raise ReferenceFailedError(failure_of(error)) from error


def _slot(network: Network, n_steps: int, device: Device, clock: Clock) -> Slot:
    network.load()
    try:
        for _ in range(UNTIMED_STEPS):
            network.step()
        marks = device.marks(n_steps + 1)  # allocated before the clock starts
        device.synchronize()
        start = clock()
        marks[0].record()
        network.step()
        enqueued = clock()
        marks[1].record()
        for mark in marks[2:]:
            network.step()
            mark.record()
        device.synchronize()
        end = clock()
    finally:
        network.unload()
    step_ms = tuple(before.elapsed_time(after) for before, after in itertools.pairwise(marks))
    return Slot(n_steps, end - start, enqueued - start, step_ms)


def residency(networks: Iterable[Network], peaks: Iterable[int], total_bytes: int) -> Residency:
    """`all` where the weights of every owner and the largest peak beside them fit in 60 % of the device, else `moved`.

    peaks: memory that each network took at its peak beyond its weights.
    """
    weights: dict[str, int] = {}
    for network in networks:
        weights[network.owner] = network.weights_bytes
    return "all" if sum(weights.values()) + max(peaks, default=0) <= RESIDENT_SHARE * total_bytes else "moved"
