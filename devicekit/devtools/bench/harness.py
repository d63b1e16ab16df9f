"""What every benchmark shares: timing by medians, yardsticks, and rows that compare between machines.

Absolute times differ between machines; the ratio to a simple operation measured in the same run holds. Each
timed row is therefore also given as a multiple of a yardstick, and a peer's figure, which was measured
elsewhere, as the multiple it had of the same yardstick there.
"""

from __future__ import annotations

import json
import platform
import statistics
import timeit
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from functools import cache
from time import process_time

import numpy as np

_SAMPLES = 15
_SAMPLE_SECONDS = 0.004


class Yardstick(Enum):
    """A simple operation: its name, and its microseconds on the machine where the peers were measured."""

    CALL = ("method call", 0.03)
    ADD = ("np.add of 1024 int64", 0.55)
    LIST = ("list slice of 256", 0.56)

    def __init__(self, title: str, reference_us: float) -> None:
        self.title = title
        self.reference_us = reference_us

    @property
    def here_us(self) -> float:
        """Microseconds on this machine, measured once per run."""
        return _yardsticks()[self]


@dataclass(frozen=True, slots=True)
class Peer:
    """The best peer's time for a case, on the machine where the peers were measured."""

    name: str
    us: float


@dataclass(frozen=True, slots=True)
class Row:
    """One measured case.

    `target` is, with a peer, how many times better than the peer the case must be; without a peer, the most
    that `value` may be. None: no target.
    """

    case: str
    value: float
    unit: str  # us, B, x or %
    yardstick: str | None = None
    multiple: float | None = None  # value in yardsticks
    peer: str | None = None
    peer_multiple: float | None = None
    target: float | None = None

    @property
    def advantage(self) -> float | None:
        """How many times better than the peer; None without one."""
        if self.multiple is None or self.peer_multiple is None:
            return None
        return self.peer_multiple / self.multiple

    @property
    def met(self) -> bool | None:
        """Whether the target is met; None without one."""
        if self.target is None:
            return None
        return self.value <= self.target if self.advantage is None else self.advantage >= self.target


def time_us(statement: str, names: Mapping[str, object]) -> float:
    """Median CPU microseconds of `statement`, with `names` as its globals.

    A statement rather than a function: the call would cost as much as what is measured.
    """
    timer = timeit.Timer(statement, timer=process_time, globals=dict(names))
    number = 1
    while (elapsed := timer.timeit(number)) < _SAMPLE_SECONDS / 4:
        number *= 4
    number = max(1, round(number * _SAMPLE_SECONDS / elapsed))
    return statistics.median(timer.repeat(_SAMPLES, number)) / number * 1e6


def timed_row(
    case: str,
    us: float,
    *,
    peer: Peer | None = None,
    target: float | None = None,
    yardstick: Yardstick = Yardstick.ADD,
) -> Row:
    """A row for a time, set against the yardstick and the peer."""
    return Row(
        case=case,
        value=us,
        unit="us",
        yardstick=yardstick.title,
        multiple=us / yardstick.here_us,
        peer=peer.name if peer else None,
        peer_multiple=peer.us / yardstick.reference_us if peer else None,
        target=target,
    )


def as_table(rows: list[Row]) -> str:
    """The rows as aligned text, the yardsticks of this run below."""
    heads = ("case", "value", "yardsticks", "peer", "its yardsticks", "better", "target", "met")
    cells = [heads, *map(_cells, rows)]
    widths = [max(len(line[column]) for line in cells) for column in range(len(heads))]
    lines = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells]
    lines.insert(1, "  ".join("-" * width for width in widths))
    sticks = ", ".join(f"{stick.title} {stick.here_us:.3f} us" for stick in Yardstick)
    return "\n".join([*(line.rstrip() for line in lines), "", f"yardsticks here: {sticks}"])


def as_json(rows: list[Row]) -> str:
    """The rows and the yardsticks of this run, as a JSON document."""
    return json.dumps(
        {
            "python": platform.python_version(),
            "numpy": np.__version__,
            "processor": platform.machine(),
            "yardsticks_us": {stick.title: stick.here_us for stick in Yardstick},
            "rows": [asdict(row) | {"advantage": row.advantage, "met": row.met} for row in rows],
        },
        indent=2,
    )


class _Something:
    def method(self) -> None:
        """Nothing."""


@cache
def _yardsticks() -> dict[Yardstick, float]:
    numbers = np.arange(1024)
    many = list(range(4096))
    return {
        Yardstick.CALL: time_us("method()", {"method": _Something().method}),
        Yardstick.ADD: time_us("add(a, 1, out=a)", {"add": np.add, "a": numbers}),
        Yardstick.LIST: time_us("some = many[-256:]; del many[-256:]; many.extend(some)", {"many": many}),
    }


def _cells(row: Row) -> tuple[str, ...]:
    limit = "<=" if row.peer_multiple is None else ">="
    suffix = "x" if row.peer_multiple is not None else f" {row.unit}"
    return (
        row.case,
        f"{row.value:.3g} {row.unit}" if row.value < 1000 else f"{row.value:.0f} {row.unit}",
        "" if row.multiple is None else f"{row.multiple:.3g}",
        row.peer or "",
        "" if row.peer_multiple is None else f"{row.peer_multiple:.3g}",
        "" if row.advantage is None else f"{row.advantage:.3g}x",
        "" if row.target is None else f"{limit} {row.target:g}{suffix}",
        {None: "", True: "yes", False: "NO"}[row.met],
    )
