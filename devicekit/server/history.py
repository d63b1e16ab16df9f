"""What happened lately: recent control operations, and a memory sample for every second."""

from __future__ import annotations

import logging
import time
from collections import deque
from dataclasses import dataclass

from devicekit.contract.errors import DeviceError
from devicekit.contract.records import MemoryStats
from devicekit.device import Device
from devicekit.scheduling.messages import Operation, Reply
from devicekit.server.snapshot import Snapshot

_log = logging.getLogger(__name__)

_OPERATIONS = 50
_SAMPLES = 300  # seconds


@dataclass(frozen=True, slots=True)
class OperationRecord:
    """One control operation and how it ended."""

    at: float  # unix seconds
    operation: str
    success: bool
    message: str
    seconds: float


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


class History:
    """Bounded, and only in memory."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._next_sample = 0.0
        self._warned = False
        self.operations: deque[OperationRecord] = deque(maxlen=_OPERATIONS)
        self._samples: tuple[Sample, ...] = ()

    @property
    def samples(self) -> tuple[Sample, ...]:
        """Oldest first, one a second as long as the engine's thread is alive."""
        return self._samples

    def sample(self, snapshot: Snapshot) -> None:
        """Take a sample if a second has passed. Called in the engine's thread."""
        now = time.monotonic()
        if now < self._next_sample:
            return
        self._next_sample = now + 1.0
        stats = self._statistics()
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
        """Keep what became of an operation."""
        name = type(operation).__name__
        self.operations.append(
            OperationRecord(time.time(), name, reply.success, reply.message, reply.seconds)
        )
