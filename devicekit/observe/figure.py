"""The picture of a timeline as plain shapes, laid out once for every format that draws it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from devicekit.observe.timeline import Mark, MarkKind, Sample, Timeline

WIDTH, HEIGHT = 960, 480
_LEFT, _RIGHT = 84, 24
_TOP, _MIDDLE, _BOTTOM = 64, 330, 444  # of the allocator's panel, between the panels, of the driver's panel
_GAP = 36
_LABEL_ROOM = 26.0  # between the numbers of two marks
_BINARY = ((1 << 40, "TiB"), (1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB"), (1, "B"))

Point = tuple[float, float]


@dataclass(frozen=True, slots=True)
class Line:
    """A path. ``role`` names its colour: a quantity, a kind of mark, ``grid`` or ``axis``."""

    points: tuple[Point, ...]
    role: str
    width: float = 1.0
    dashed: bool = False
    tip: str = ""  # shown when pointed at, where the format can


@dataclass(frozen=True, slots=True)
class Area:
    """A filled shape in a pale shade of its role's colour."""

    points: tuple[Point, ...]
    role: str


@dataclass(frozen=True, slots=True)
class Label:
    """Text whose baseline is at ``y``; ``anchor`` is start, middle or end."""

    x: float
    y: float
    text: str
    role: str = "text"
    anchor: str = "start"
    size: float = 12.0


Shape = Line | Area | Label


@dataclass(frozen=True, slots=True)
class Figure:
    """A title, the shapes in drawing order, and the marks as numbered lines of text."""

    title: str
    shapes: tuple[Shape, ...]
    legend: tuple[str, ...]


def draw(timeline: Timeline) -> Figure:
    """Lay the picture out: the allocator above, the driver's free memory below, one axis of time."""
    start = timeline.started
    times = [one.at for one in timeline.samples] + [mark.at for mark in timeline.marks]
    span = max(max(times, default=start) - start, 1e-6)

    def across(at: float) -> float:
        return _LEFT + (at - start) / span * (WIDTH - _LEFT - _RIGHT)

    shapes: list[Shape] = []
    allocator = {"reserved": lambda one: one.reserved, "allocated": lambda one: one.allocated}
    shapes += _panel(timeline.samples, allocator, across, _TOP, _MIDDLE)
    shapes += _panel(timeline.samples, {"free": lambda one: one.free}, across, _MIDDLE + _GAP, _BOTTOM)
    shapes += _time_axis(span, across, start)
    marks = sorted(timeline.marks, key=lambda mark: mark.at)
    legend = tuple(
        f"{number}. {mark.at - start:.3f} s  {mark.kind.value}: {describe(mark)}"
        for number, mark in enumerate(marks, 1)
    )
    shapes += _rules(marks, legend, across)
    return Figure(f"Memory of {timeline.device} over time", (*shapes, *_keys(timeline)), legend)


def describe(mark: Mark) -> str:
    """A mark in words: what, what it handed back, how long it took."""
    parts = [mark.label]
    if mark.released is not None:
        parts.append(f"{amount(mark.released)} handed back")
    if mark.seconds is not None:
        parts.append(f"{mark.seconds * 1e3:.2f} ms")
    return ", ".join(parts)


def amount(size: float) -> str:
    """Bytes in the largest unit that leaves a number of at least 1."""
    for unit, name in _BINARY:
        if abs(size) >= unit:
            return f"{size / unit:.4g} {name}"
    return f"{size:g} B"


def _rules(marks: Sequence[Mark], legend: Sequence[str], across: Callable[[float], float]) -> list[Shape]:
    """An upright line for each mark, and its number above; marks too close to tell apart share a label."""
    shapes: list[Shape] = []
    groups: list[list[int]] = []
    for number, mark in enumerate(marks, 1):
        x, role = across(mark.at), mark.kind.value
        dashed = mark.kind is not MarkKind.RELEASE
        shapes.append(Line(((x, _TOP), (x, _BOTTOM)), role, 1.0, dashed, legend[number - 1]))
        if groups and x - across(marks[groups[-1][0] - 1].at) < _LABEL_ROOM:
            groups[-1].append(number)
        else:
            groups.append([number])
    for group in groups:
        text = str(group[0]) if len(group) == 1 else f"{group[0]}-{group[-1]}"
        x = across(marks[group[0] - 1].at)
        shapes.append(Label(x, _TOP - 5, text, marks[group[0] - 1].kind.value, "middle", 11))
    return shapes


def _panel(
    samples: Sequence[Sample],
    quantities: dict[str, Callable[[Sample], int | None]],
    across: Callable[[float], float],
    top: float,
    bottom: float,
) -> list[Shape]:
    highest = max((size for read in quantities.values() for one in samples if (size := read(one))), default=0)
    step = _nice_step(highest)
    ceiling = step * max(1, math.ceil(highest / step))
    shapes: list[Shape] = []
    for line in range(round(ceiling / step) + 1):
        y = bottom - line * step / ceiling * (bottom - top)
        shapes.append(Line(((_LEFT, y), (WIDTH - _RIGHT, y)), "grid" if line else "axis"))
        shapes.append(Label(_LEFT - 8, y + 4, amount(line * step), anchor="end", size=11))
    for role, read in quantities.items():
        for run in _runs(samples, read):
            points = _steps([(across(at), bottom - size / ceiling * (bottom - top)) for at, size in run])
            if role != "free":
                shapes.append(Area(((points[0][0], bottom), *points, (points[-1][0], bottom)), role))
            shapes.append(Line(points, role, 2.0))
    return shapes


def _runs(samples: Sequence[Sample], read: Callable[[Sample], int | None]) -> list[list[tuple[float, int]]]:
    """Stretches in which the quantity is known."""
    runs: list[list[tuple[float, int]]] = [[]]
    for one in samples:
        if (size := read(one)) is not None:
            runs[-1].append((one.at, size))
        elif runs[-1]:
            runs.append([])
    return [run for run in runs if run]


def _steps(points: list[Point]) -> tuple[Point, ...]:
    """A value holds until the next is known; of the points within one pixel, the extremes are enough."""
    path: list[Point] = []
    column: list[Point] = []
    for x, y in points:
        if column and int(x) != int(column[0][0]):
            path += _extremes(column)
            column = []
        if not column and path:
            path.append((x, path[-1][1]))
        column.append((x, y))
    return (*path, *_extremes(column))


def _extremes(column: list[Point]) -> list[Point]:
    if len(column) <= 4:
        return column
    ys = [y for _, y in column]
    return [column[0], (column[0][0], min(ys)), (column[0][0], max(ys)), column[-1]]


def _nice_step(highest: float) -> float:
    """A round number of a binary unit that divides the axis into two to five parts."""
    unit = next((unit for unit, _ in _BINARY if highest >= unit), 1)
    rough = max(highest / unit / 4, 1e-9)
    power = 10.0 ** math.floor(math.log10(rough))
    return unit * next(power * factor for factor in (1, 2, 5, 10) if power * factor >= rough * 0.999)


def _time_axis(span: float, across: Callable[[float], float], start: float) -> list[Shape]:
    power = 10.0 ** math.floor(math.log10(span / 5))
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= span / 6)
    return [
        Label(across(start + number * step), _BOTTOM + 18, f"{number * step:g} s", anchor="middle", size=11)
        for number in range(int(span / step) + 1)
    ]


def _keys(timeline: Timeline) -> list[Shape]:
    """Which colour is what, and what this backend does not say."""
    shapes: list[Shape] = []
    x = float(_LEFT)
    for role, known in (
        ("allocated", any(one.allocated is not None for one in timeline.samples)),
        ("reserved", any(one.reserved is not None for one in timeline.samples)),
        ("free", any(one.free is not None for one in timeline.samples)),
    ):
        text = {"allocated": "allocated", "reserved": "reserved", "free": "free on the device (below)"}[role]
        text += "" if known else ": unknown"
        shapes.append(Line(((x, 26), (x + 22, 26)), role, 3.0))
        shapes.append(Label(x + 28, 30, text))
        x += 62 + 7.0 * len(text)
    return shapes
