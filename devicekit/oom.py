"""Out of memory: drop what the failed attempt held, empty the cache, and try once more.

::

    recovery = OutOfMemoryRecovery(device)
    result = recovery.run("encoding the prompt", encode, tokens)

    fitted = find_executable_batch_size(lambda size: model(batch(size)), 64, device=device)
    fitted.batch_size, fitted.result

The function must be safe to run a second time. A lost device is never tried again, nor is any other error.
"""

from __future__ import annotations

import dataclasses
import traceback
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from typing import Generic, ParamSpec, TypeVar

from devicekit.contract.records import ErrorKind
from devicekit.coordination import Coordinator, SingleRank, run_on_all_ranks
from devicekit.device import Device, get_device
from devicekit.release import ReleaseEntry, ReleasePoint, ReleasePoints

_P = ParamSpec("_P")
_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class OutOfMemoryReport:
    """The state of a device when something ran out of memory, in bytes. ``None``: the backend does not say."""

    what: str
    message: str  # the backend's own words, which say what was asked for
    free: int | None  # by the driver, at the failure
    total: int | None
    reserved: int | None
    allocated: int | None
    release: ReleaseEntry | None = None  # the emptying that followed
    recovered: bool = False  # whether the second attempt succeeded

    def __str__(self) -> str:
        """One line for logs and notes."""
        facts = [
            f"{_bytes(self.free)} of {_bytes(self.total)} were free",
            f"this process had {_bytes(self.reserved)} reserved and {_bytes(self.allocated)} of these allocated",
        ]
        if self.release is not None:
            gave = (
                f"gave back {_bytes(self.release.released)}"
                if self.release
                else f"skipped: {self.release.reason}"
            )
            facts.append(f"emptying the cache {gave}")
        return f"Out of memory in {self.what}: {', '.join(facts)}."


@dataclass(slots=True)
class OutOfMemoryRecovery:
    """Runs functions that may run out of a device's memory.

    Args:
        releases: whose out-of-memory point empties the cache; default: as the environment sets it.
        free: called first, to drop what can be done without (caches, prefetched data).
        coordinator: what is done between two attempts is done by every rank, or fails on every rank.
    """

    device: Device
    releases: ReleasePoints | None = None
    free: Callable[[], object] | None = None
    coordinator: Coordinator = field(default_factory=SingleRank)
    last: OutOfMemoryReport | None = field(init=False, default=None)
    recovered: int = field(init=False, default=0)
    failed: int = field(init=False, default=0)

    def run(self, what: str, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
        """``function(*args, **kwargs)``, run a second time if it runs out of memory.

        Args:
            what: what is being done, for the report: "the forward pass".

        Raises:
            whatever the function raises. An out of memory error that was not recovered from carries a note with
            the state of the device and what emptying gave.
        """
        try:
            return function(*args, **kwargs)
        except Exception as error:
            if self.device.classify_error(error) is not ErrorKind.OUT_OF_MEMORY:
                raise
            report = run_on_all_ranks(self.coordinator, partial(_examine, self.device, what, error))
            forget_tensors(error)
        # Outside the handler, where nothing refers to the error: it held what the failed attempt had made.
        report = run_on_all_ranks(self.coordinator, partial(self._make_room, report))
        try:
            result = function(*args, **kwargs)
        except Exception as error:
            self.failed += 1
            self.last = report
            add_note(error, str(report))
            forget_tensors(error)
            raise
        self.recovered += 1
        self.last = dataclasses.replace(report, recovered=True)
        return result

    def _make_room(self, report: OutOfMemoryReport) -> OutOfMemoryReport:
        if self.releases is None:
            self.releases = ReleasePoints.configured(self.device)
        try:
            if self.free is not None:
                self.free()
            return dataclasses.replace(report, release=self.releases.reach(ReleasePoint.OUT_OF_MEMORY))
        except Exception as error:
            self.failed += 1
            self.last = report
            add_note(error, f"This happened while making room after: {report} {report.message}")
            raise


@dataclass(frozen=True, slots=True)
class Fitted(Generic[_T]):
    """A batch size that fits, the function's result, and the larger sizes that did not fit."""

    batch_size: int
    result: _T
    failures: tuple[OutOfMemoryReport, ...]


def find_executable_batch_size(
    function: Callable[[int], _T],
    start: int,
    *,
    minimum: int = 1,
    device: Device | str | None = None,
    releases: ReleasePoints | None = None,
) -> Fitted[_T]:
    """Call ``function`` with ``start``, and with half of it as often as it runs out of memory.

    Args:
        device: as for `devicekit.get_device`.

    Raises:
        ValueError: not 1 <= minimum <= start.
        whatever the function raises: out of memory only at ``minimum``, with a note of the sizes tried.
    """
    if not 1 <= minimum <= start:
        raise ValueError(f"A batch size to start with is at least the minimum of {minimum}, not {start}.")
    handle = get_device(device)
    points = releases or ReleasePoints.configured(handle)
    failures: list[OutOfMemoryReport] = []
    size = start
    while True:
        try:
            return Fitted(size, function(size), tuple(failures))
        except Exception as error:
            if handle.classify_error(error) is not ErrorKind.OUT_OF_MEMORY:
                raise
            report = _examine(handle, f"a batch of {size}", error)
            forget_tensors(error)
            if size == minimum:
                tried = ", ".join(failure.what for failure in (*failures, report))
                add_note(error, f"{report} Nothing smaller may be tried; tried: {tried}.")
                raise
        failures.append(dataclasses.replace(report, release=points.reach(ReleasePoint.OUT_OF_MEMORY)))
        size = max(minimum, size // 2)


def forget_tensors(error: BaseException) -> None:
    """Clear the local variables of the frames that ``error`` passed through, and those of its causes.

    As long as the error lives, they keep every tensor of the failed attempt. Frames that still run are left alone,
    and so are the line numbers of the traceback.
    """
    for one in _chain(error):
        traceback.clear_frames(one.__traceback__)


def add_note(error: BaseException, note: str) -> None:
    """Add a line below an error's message, where Python 3.10 keeps it without printing it."""
    if hasattr(error, "add_note"):
        error.add_note(note)
    else:
        error.__dict__.setdefault("__notes__", []).append(note)


def describe(error: BaseException) -> str:
    """An error's type, message and notes, in one line."""
    notes = " ".join(getattr(error, "__notes__", ()))
    return f"{type(error).__name__}: {error}" + (f" {notes}" if notes else "")


def _examine(device: Device, what: str, error: Exception) -> OutOfMemoryReport:
    info, stats = device.memory_info(), device.memory_stats()
    return OutOfMemoryReport(what, str(error), info.free, info.total, stats.reserved, stats.allocated)


def _chain(error: BaseException) -> Iterator[BaseException]:
    seen: set[int] = set()
    waiting: list[BaseException | None] = [error]
    while waiting:
        one = waiting.pop()
        if one is not None and id(one) not in seen:
            seen.add(id(one))
            yield one
            waiting += [one.__cause__, one.__context__]


def _bytes(count: int | None) -> str:
    return "an unknown number of bytes" if count is None else f"{count} bytes"
