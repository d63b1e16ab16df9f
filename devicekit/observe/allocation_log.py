"""A log of allocations as CSV or JSON lines, and its replay to see what another allocator makes of it."""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from enum import Enum
from pathlib import Path
from types import TracebackType
from typing import Any, cast

import torch

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.records import ErrorKind
from devicekit.device import Device
from devicekit.documents import UnreadableDocument, finite_number, parse_json, read_lines
from devicekit.files import UnreadableFile
from devicekit.observe.allocations import Adaptor, Allocation, settle
from devicekit.observe.memory_scope import memory_scope

_MOST_BYTES = 1 << 62


class Action(str, Enum):
    """What a line of the log says happened."""

    ALLOCATE = "allocate"
    FREE = "free"


@dataclass(frozen=True, slots=True)
class LogLine:
    """One line of an allocation log."""

    seconds: float  # since the log was opened
    action: Action
    number: int  # pairs a free with its allocation
    bytes: int
    operator: str
    thread: int


_FIELDS = tuple(LogLine.__dataclass_fields__)


class AllocationLog(Adaptor):
    """Writes every allocation and every free to ``path``: CSV if it ends in ``.csv``, otherwise JSON lines.

    Use it as a context manager, or `close` it. What is freed later is not written any more.
    """

    def __init__(self, path: str | Path) -> None:
        self.path = Path(path)
        self._file = self.path.open("w", encoding="utf-8", newline="")
        self._rows = csv.DictWriter(self._file, _FIELDS) if self.path.suffix == ".csv" else None
        self._started = time.perf_counter()
        if self._rows is not None:
            self._rows.writeheader()

    def __enter__(self) -> AllocationLog:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Write what is still to be written."""
        settle()
        self._file.close()

    def allocated(self, allocation: Allocation) -> None:
        self._write(Action.ALLOCATE, allocation, allocation.at)

    def freed(self, allocation: Allocation, at: float) -> None:
        self._write(Action.FREE, allocation, at)

    def _write(self, action: Action, allocation: Allocation, at: float) -> None:
        if self._file.closed:
            return
        line = LogLine(
            round(at - self._started, 7),
            action,
            allocation.number,
            allocation.bytes,
            allocation.operator,
            allocation.thread,
        )
        row = asdict(line) | {"action": action.value}
        if self._rows is not None:
            self._rows.writerow(row)
        else:
            self._file.write(json.dumps(row) + "\n")


def read_log(path: str | Path) -> Iterator[LogLine]:
    """The lines of a log that `AllocationLog` wrote.

    Raises:
        ConfigurationError: the file is no allocation log.
    """
    count = 0
    try:
        file = read_lines(path)
        in_csv = Path(path).suffix == ".csv"
        for row in csv.DictReader(file) if in_csv else (parse_json(one, "it") for one in file):
            line = _line(cast("Mapping[str, Any]", row), in_csv)
            count += 1
            yield line
    except (UnreadableDocument, KeyError, TypeError, ValueError, csv.Error) as error:
        raise ConfigurationError(f"Entry {count + 1} of {path} is not of an allocation log.") from error
    except UnreadableFile as error:
        raise ConfigurationError(f"The allocation log cannot be read: {error}") from error


def _line(row: Mapping[str, Any], in_csv: bool) -> LogLine:
    seconds = finite_number(float(row["seconds"]) if in_csv else row["seconds"])
    # CSV knows texts alone.
    number, size, thread = (int(row[one]) if in_csv else row[one] for one in ("number", "bytes", "thread"))
    if any(type(one) is not int for one in (number, size, thread)) or not 0 <= size <= _MOST_BYTES:
        raise ValueError("numbers, sizes and threads are whole numbers")
    if not isinstance(row["operator"], str):
        raise TypeError("an operator is a text")
    return LogLine(seconds, Action(row["action"]), number, size, row["operator"], thread)


@dataclass(frozen=True, slots=True)
class ReplayReport:
    """What an allocator did with a log. ``None``: the backend does not say."""

    allocations: int
    failed: int  # allocations that found no memory
    seconds: float
    requested_peak: int  # the most bytes the log had outstanding
    reserved: int | None  # change of the allocator's reserved bytes
    peak_allocated: int | None  # highest allocated bytes above where they began


def replay(path: str | Path, device: Device) -> ReplayReport:
    """Allocate and free on ``device`` as the log says, as fast as it goes, and measure.

    Allocations that fail are counted and skipped. Everything is freed at the end; the cache is not emptied.

    Raises:
        ConfigurationError: the file is no allocation log.
    """
    lines = list(read_log(path))
    held: dict[int, torch.Tensor] = {}
    allocations = failed = now = peak = 0
    started = time.perf_counter()
    with memory_scope(device) as scope:
        for line in lines:
            if line.action is Action.FREE:
                if held.pop(line.number, None) is not None:
                    now -= line.bytes
                continue
            allocations += 1
            try:
                held[line.number] = torch.empty(line.bytes, dtype=torch.uint8, device=device.torch_device)
            except Exception as error:
                if device.classify_error(error) is not ErrorKind.OUT_OF_MEMORY:
                    raise
                failed += 1
                continue
            now += line.bytes
            peak = max(peak, now)
        held.clear()
    return ReplayReport(allocations, failed, time.perf_counter() - started, peak, scope.reserved, scope.peak)
