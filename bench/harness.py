"""What every benchmark shares: timing in turns with a yardstick or a peer, and rows of what came of it.

Absolute times differ between machines, and on a busy one between minutes. The ratio to a simple operation that is
timed in turns with the case holds. Each timed row is therefore also given as a multiple of a yardstick (the median
of such ratios). What a peer takes is known only from a run in which it was timed in turns with ours: no figure of
another program stands in this code.
"""

from __future__ import annotations

import statistics
import timeit
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from functools import cache
from time import process_time

import numpy as np

_SAMPLES = 15
_SAMPLE_SECONDS = 0.004
_STICK_SECONDS = 0.0005


class Yardstick(Enum):
    """A simple operation, by its name."""

    CALL = "method call"
    ADD = "np.add of 1024 int64"
    LIST = "list slice of 256"

    @property
    def title(self) -> str:
        """Its name."""
        return self.value

    @property
    def here_us(self) -> float:
        """Microseconds on this machine, measured once per run."""
        return _here()[self]


@dataclass(frozen=True, slots=True)
class Timing:
    """What one operation costs: CPU microseconds, and yardsticks timed in turns with it. Both are medians."""

    us: float
    multiple: float
    yardstick: Yardstick = Yardstick.ADD

    @classmethod
    def of(cls, us: float) -> Timing:
        """A time that was not measured in turns with a yardstick: against what that takes in this run."""
        return cls(us, us / Yardstick.ADD.here_us)

    def beyond(self, other: Timing) -> Timing:
        """What this costs more than `other`, in the same yardstick."""
        return Timing(self.us - other.us, self.multiple - other.multiple, self.yardstick)


@dataclass(frozen=True, slots=True)
class Peer:
    """What another program took for the same case, timed in turns with ours."""

    name: str
    us: float
    times: float  # the median of its time over ours, pair by pair


@dataclass(frozen=True, slots=True)
class Row:
    """One measured case.

    `target` is, with a peer, how many times better than the peer the case must be; without a peer, the most
    that `value` may be. None: no target.
    """

    case: str
    value: float
    unit: str  # us, ns, B, x or %
    yardstick: str | None = None
    multiple: float | None = None  # value in yardsticks
    peer: str | None = None
    peer_us: float | None = None
    advantage: float | None = None  # how many times better than the peer; None without one
    target: float | None = None
    curve: str | None = None  # the curve that the case is a point of
    at: int | None = None  # and where on it
    says: str | None = None  # what is in the figures and what is not, in lines

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.advantage is None else self.advantage >= self.target


def measure(statement: str, names: Mapping[str, object], yardstick: Yardstick = Yardstick.ADD) -> Timing:
    """Time `statement`, with `names` as its globals.

    A statement rather than a function: the call would cost as much as what is measured.
    """
    timer, number = _timer(statement, names, _SAMPLE_SECONDS)
    return measure_by(lambda: timer.timeit(number) / number, samples=_SAMPLES, yardstick=yardstick)


def measure_by(
    once: Callable[[], float], *, samples: int = _SAMPLES, yardstick: Yardstick = Yardstick.ADD
) -> Timing:
    """As `measure`, for what cannot be said in a statement: `once` returns the CPU seconds of one operation."""
    stick, number = _sticks()[yardstick]
    times: list[float] = []
    ratios: list[float] = []
    before = stick.timeit(number)
    for _ in range(samples):
        times.append(once())
        after = stick.timeit(number)
        ratios.append(times[-1] * 2 * number / (before + after))
        before = after
    return Timing(statistics.median(times) * 1e6, statistics.median(ratios), yardstick)


def cpu_seconds(work: Callable[[], object], times: int = 1) -> float:
    """CPU seconds of a single one of `times` calls."""
    started = process_time()
    for _ in range(times):
        work()
    return (process_time() - started) / times


def timed_row(
    case: str,
    timing: Timing,
    *,
    peer: Peer | None = None,
    target: float | None = None,
    curve: str | None = None,
    at: int | None = None,
    says: str | None = None,
) -> Row:
    """A row for a time, set against the yardstick and the peer."""
    return Row(
        case=case,
        value=timing.us,
        unit="us",
        yardstick=timing.yardstick.title,
        multiple=timing.multiple,
        peer=peer.name if peer else None,
        peer_us=peer.us if peer else None,
        advantage=peer.times if peer else None,
        target=target,
        curve=curve,
        at=at,
        says=says,
    )


def rows_beside(
    case: str,
    own: Sequence[float],
    others: Mapping[str, Sequence[float]],
    targets: Mapping[str, float],
    says: str,
) -> list[Row]:
    """A row for each peer that was timed in turns with ours.

    Args:
        own: seconds, turn by turn.
        others: seconds of each peer in the same turns.
        targets: how many times better than a peer, for those that have one.
    """
    timing = Timing.of(statistics.median(own) * 1e6)
    rows = []
    for name, times in others.items():
        ratio = statistics.median(other / one for other, one in zip(times, own, strict=True))
        peer = Peer(name, statistics.median(times) * 1e6, ratio)
        rows.append(timed_row(case, timing, peer=peer, target=targets.get(name), says=says))
    return rows


def growth_row(case: str, first: Timing, last: Timing, target: float | None) -> Row:
    """How many times more `last` costs than `first`."""
    return Row(case, last.multiple / first.multiple, "x", target=target)


class _Something:
    def method(self) -> None:
        """Nothing."""


def _timer(statement: str, names: Mapping[str, object], seconds: float) -> tuple[timeit.Timer, int]:
    """A timer of CPU time, and how many times it must run the statement to take about `seconds`."""
    timer = timeit.Timer(statement, timer=process_time, globals=dict(names))
    number = 1
    while (elapsed := timer.timeit(number)) < seconds / 4:
        number *= 4
    return timer, max(1, round(number * seconds / elapsed))


@cache
def _sticks() -> dict[Yardstick, tuple[timeit.Timer, int]]:
    many = "some = many[-256:]; del many[-256:]; many.extend(some)"
    cases: dict[Yardstick, tuple[str, dict[str, object]]] = {
        Yardstick.CALL: ("method()", {"method": _Something().method}),
        Yardstick.ADD: ("add(a, 1, out=a)", {"add": np.add, "a": np.arange(1024)}),
        Yardstick.LIST: (many, {"many": list(range(4096))}),
    }
    return {stick: _timer(*case, _STICK_SECONDS) for stick, case in cases.items()}


@cache
def _here() -> dict[Yardstick, float]:
    return {
        stick: statistics.median(timer.repeat(_SAMPLES, number)) / number * 1e6
        for stick, (timer, number) in _sticks().items()
    }
