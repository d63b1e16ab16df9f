"""The recent past: control operations, failed requests, and a memory sample for every second."""

from __future__ import annotations

import logging
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from devicekit.contract.errors import DeviceError
from devicekit.contract.records import MemoryStats
from devicekit.device import Device
from devicekit.scheduling.messages import AbortReply, FlushReply, Operation, Output, PauseReply, Reply
from devicekit.scheduling.request import FinishKind
from devicekit.server.snapshot import Snapshot

_log = logging.getLogger(__name__)

_OPERATIONS = 50
_FAILURES = 20
_FIRSTS = 256  # requests whose time to the first token is remembered
_LATELY = 10.0  # seconds
_SAMPLES = 300  # seconds


@dataclass(frozen=True, slots=True)
class OperationRecord:
    """One control operation and how it ended."""

    at: float  # unix seconds
    operation: str
    success: bool
    message: str
    seconds: float
    times: int = 1  # that the same came in a row and changed nothing


@dataclass(frozen=True, slots=True)
class Sample:
    """Memory at one moment. Bytes; ``None`` where the backend does not count."""

    at: float  # unix seconds
    running: int
    waiting: int
    pages_used: int
    pages_cached: int
    pages_free: int
    computed_tokens: int  # since the start
    allocated: int | None
    reserved: int | None
    first_token_seconds: float | None = None  # mean, of requests that ended lately; None: none did


@dataclass(frozen=True, slots=True)
class Failure:
    """A request that the engine could not serve."""

    at: float  # unix seconds
    request: str
    message: str


class History:
    """Bounded, and kept in memory only."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._next_sample = 0.0
        self._warned = False
        self.operations: deque[OperationRecord] = deque(maxlen=_OPERATIONS)
        self.failures: deque[Failure] = deque(maxlen=_FAILURES)
        self._firsts: deque[tuple[float, float]] = deque(maxlen=_FIRSTS)
        self._samples: tuple[Sample, ...] = ()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Oldest first, one a second as long as the engine's thread is alive."""
        return self._samples

    def sample(self, look: Callable[[], Snapshot]) -> None:
        """Take a sample if a second has passed: only then does it look. Called in the engine's thread."""
        now = time.monotonic()
        if now < self._next_sample:
            return
        self._next_sample = now + 1.0
        snapshot, stats = look(), self._statistics()
        taken = Sample(
            time.time(),
            snapshot.running + snapshot.prefilling,
            snapshot.waiting,
            snapshot.pages_used,
            snapshot.pages_cached,
            snapshot.pages_free,
            snapshot.computed_tokens,
            stats.allocated,
            stats.reserved,
            self._first_token(now),
        )
        # A new tuple each time: other threads may be reading the old one.
        self._samples = (*self._samples[-_SAMPLES + 1 :], taken)

    def _statistics(self) -> MemoryStats:
        try:
            return self._device.memory_stats()
        except DeviceError as error:  # a number that cannot be had must not end the engine
            if not self._warned:
                self._warned = True
                _log.warning("Memory statistics are unknown: %s", error)
            return MemoryStats()

    def answered(self, operation: Operation, reply: Reply) -> None:
        """Record an operation that was answered."""
        name = type(operation).__name__
        record = OperationRecord(time.time(), name, reply.success, reply.message, reply.seconds)
        last = self.operations[-1] if self.operations else None
        if last is not None and _changed_nothing(reply) and _alike(last, record):
            self.operations[-1] = replace(record, times=last.times + 1)
        else:
            self.operations.append(record)

    def ended(self, outputs: Sequence[Output]) -> None:
        """Record why requests failed, and how soon those that ended had their first token."""
        for output in outputs:
            if output.finish is None:
                continue
            if output.finish.kind is FinishKind.ERROR:
                self.failures.append(Failure(time.time(), output.id, output.finish.message))
            if output.times is not None and output.times.first_token is not None:
                self._firsts.append((time.monotonic(), output.times.first_token))

    def _first_token(self, now: float) -> float | None:
        lately = [seconds for at, seconds in tuple(self._firsts) if at > now - _LATELY]
        return sum(lately) / len(lately) if lately else None


def _alike(one: OperationRecord, other: OperationRecord) -> bool:
    return (one.operation, one.success, one.message) == (other.operation, other.success, other.message)


def _changed_nothing(reply: Reply) -> bool:
    """Whether an operation left everything as it was."""
    if not reply.success:
        return True
    if isinstance(reply, PauseReply):
        return not reply.changed
    if isinstance(reply, AbortReply):
        return not reply.aborted
    return isinstance(reply, FlushReply) and not reply.pages_freed
