"""Which allocations are still there, and which lines of code made them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from devicekit.contract.text import counted
from devicekit.observe.allocations import Adaptor, Allocation, settle
from devicekit.ranges import whole


@dataclass(frozen=True, slots=True)
class Frame:
    """One line of a stack."""

    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line} in {self.function}"


@dataclass(frozen=True, slots=True)
class Outstanding:
    """An allocation that has not been freed, and who made it; innermost frame first."""

    allocation: Allocation
    stack: tuple[Frame, ...]


class Track(Adaptor):
    """Remembers every allocation until it is freed.

    Args:
        depth: how many frames of Python to keep of each stack; 0 keeps none and costs least. Frames inside torch
            and inside this package are left out.
    """

    def __init__(self, *, depth: int = 8) -> None:
        whole("depth", depth)
        self._depth = depth
        self._found: dict[int, Outstanding] = {}

    @property
    def bytes(self) -> int:
        """Bytes outstanding."""
        return sum(one.allocation.bytes for one in self.outstanding())

    def outstanding(self) -> Sequence[Outstanding]:
        """What is still allocated, oldest first."""
        settle()
        return list(self._found.values())

    def report(self, top: int = 10) -> str:
        """The places that hold most, as text: bytes, count, and the stack of each."""
        sizes: Counter[tuple[Frame, ...]] = Counter()
        counts: Counter[tuple[Frame, ...]] = Counter()
        for one in self.outstanding():
            sizes[one.stack] += one.allocation.bytes
            counts[one.stack] += 1
        lines = [f"{sum(sizes.values())} bytes in {counted(sum(counts.values()), 'allocation')} outstanding"]
        for stack, size in sizes.most_common(top):
            lines.append(f"{size} bytes in {counted(counts[stack], 'allocation')}")
            lines += [f"    {frame}" for frame in stack]
        return "\n".join(lines)

    def allocated(self, allocation: Allocation) -> None:
        self._found[allocation.number] = Outstanding(allocation, _stack(self._depth))

    def freed(self, allocation: Allocation, at: float) -> None:
        del self._found[allocation.number]


_OUR_OWN = (__name__.rpartition(".")[0], "torch.")


def _stack(depth: int) -> tuple[Frame, ...]:
    frames: list[Frame] = []
    frame = sys._getframe(1) if depth else None
    while frame is not None and len(frames) < depth:
        module = frame.f_globals.get("__name__", "")
        if module != "torch" and not module.startswith(_OUR_OWN):
            frames.append(Frame(frame.f_code.co_filename, frame.f_lineno, frame.f_code.co_name))
        frame = frame.f_back
    return tuple(frames)
