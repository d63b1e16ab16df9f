"""One picture of a device's memory in characters: bars, a history, the latest marks."""

from __future__ import annotations

from collections.abc import Sequence

from devicekit.contract.text import human_bytes
from devicekit.observe.figure import describe
from devicekit.observe.timeline import Sample, Timeline

_BAR, _HISTORY, _MARKS = 40, 60, 8
_LEVELS = "▁▂▃▄▅▆▇█"


def as_text(timeline: Timeline, extra: Sequence[str] = ()) -> str:
    """The latest sample of ``timeline``, and below it ``extra`` lines and the latest marks."""
    now = timeline.samples[-1] if timeline.samples else Sample(0.0, None, None, None)
    used = None if timeline.total is None or now.free is None else timeline.total - now.free
    lines = [
        f"{timeline.device}  {human_bytes(timeline.total)}  after {now.at - timeline.started:.1f} s",
        "",
        _bar("in use, all processes", used, timeline.total),
        _bar("reserved, this process", now.reserved, timeline.total),
        _bar("allocated, this process", now.allocated, now.reserved),
        f"{'reserved over time':<24} {_history([one.reserved for one in timeline.samples])}",
    ]
    if extra:
        lines += ["", *extra]
    if timeline.marks:
        lines.append("")
        lines += [
            f"{mark.at - timeline.started:9.2f} s  {mark.kind.value:<8} {describe(mark)}"
            for mark in timeline.marks[-_MARKS:]
        ]
    return "\n".join(lines)


def _bar(name: str, size: int | None, whole: int | None) -> str:
    if size is None or not whole:
        return f"{name:<24} {'·' * _BAR} {human_bytes(size)}"
    full = round(_BAR * min(1.0, size / whole))
    share = f"{size / whole:4.0%} of {human_bytes(whole)}"
    return f"{name:<24} {'█' * full}{'░' * (_BAR - full)} {human_bytes(size)}, {share}"


def _history(sizes: Sequence[int | None]) -> str:
    """The latest values as heights; a blank where the value is unknown."""
    latest = sizes[-_HISTORY:]
    highest = max((size for size in latest if size is not None), default=0)
    if not highest:
        return "unknown" if all(size is None for size in latest) else _LEVELS[0] * len(latest)
    top = len(_LEVELS) - 1
    return "".join(" " if size is None else _LEVELS[round(top * size / highest)] for size in latest)
