"""A simulated machine: its devices, its clock, its memory, its streams, and the faults that were scripted for it.

Operations that a fault script can name: ``allocate``, ``driver_allocate``, ``empty_cache``, ``kernel`` (every one)
or ``kernel:aten::mm`` (one kind), ``copy``, ``synchronize``, ``stream.create``, ``stream.query``,
``stream.synchronize``, ``event.record``, ``event.wait``, ``event.query``, ``event.synchronize``, ``wait`` (of the
host, for a value that is read back or a copy that is not queued), and each function of ``torch.sim`` by its own
name.
"""

from __future__ import annotations

import itertools
import os
import re
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import cast

import torch

from devicekit.contract.records import AllocatorSetting
from devicekit.testing.active import DEVICE_TYPE
from devicekit.testing.clock import MockClock
from devicekit.testing.config import SimConfig
from devicekit.testing.driver import Holder, PhysicalMemory
from devicekit.testing.errors import ForkedAfterUse, WrongDevice
from devicekit.testing.faults import Fault, FaultScript
from devicekit.testing.host_memory import PinnedMemory
from devicekit.testing.sim_device import SimDevice
from devicekit.testing.streams import SimStream

__all__ = ["OtherProcess", "Simulator"]

_CHANGEABLE = ("small_limit", "large_limit")  # read anew for each allocation
_NUMBER = re.compile("[0-9]{1,18}")  # 18 digits: more bytes than any machine has
# Above any pid that Linux hands out, so that no code mistakes it for a process it could signal.
_pids = itertools.count(1 << 23)

DeviceLike = torch.device | int | str | None


class OtherProcess:
    """Somebody else's memory on a device, under a pid that no real process has. ``release()`` ends the process."""

    def __init__(self, memory: PhysicalMemory, nbytes: int) -> None:
        self.pid = next(_pids)
        self.nbytes = nbytes
        self._memory = memory
        self._holder = Holder(self.pid, "another process")
        if not memory.take(self._holder, nbytes):
            raise ValueError(f"{nbytes} bytes are wanted, but only {memory.free} of {memory.total} are free")

    def release(self) -> None:
        self._memory.give(self._holder, self.nbytes)
        self.nbytes = 0

    def __enter__(self) -> OtherProcess:
        return self

    def __exit__(self, *exc: object) -> None:
        self.release()


class _ThreadState(threading.local):
    def __init__(self) -> None:
        self.device = 0
        self.streams: dict[int, SimStream] = {}


class Simulator:
    """One machine. Nothing of it is initialised until something needs a device; looking at it never does."""

    def __init__(self, config: SimConfig | None = None, *, clock: MockClock | None = None) -> None:
        self.config = SimConfig() if config is None else config
        self.clock = MockClock() if clock is None else clock
        self.initialized = False
        self._owner = os.getpid()
        #: Held while a queue of work changes; one for all streams, since they wait for each other.
        self.lock = threading.RLock()
        self._thread = _ThreadState()
        self._scripts: list[FaultScript] = []
        count, capacity = self.config.device_count, self.config.capacity
        late = self.config.driver_counts_after
        shared = PhysicalMemory(capacity, late) if self.config.unified_memory else None
        self.pinned = PinnedMemory(shared)
        self.devices = [
            SimDevice(self, index, shared or PhysicalMemory(capacity, late)) for index in range(count)
        ]

    # Which device, which stream.

    def index_of(self, device: DeviceLike = None) -> int:
        """The index that `device` means here. Raises ValueError for another type, WrongDevice for no such one."""
        if device is None:
            return self._thread.device
        if isinstance(device, str | torch.device):
            parsed = torch.device(device)
            if parsed.type != DEVICE_TYPE:
                raise ValueError(f"a {DEVICE_TYPE} device is needed here, not {str(parsed)!r}")
            index = cast("int | None", parsed.index)  # torch's stubs say int
            if index is None:
                return self._thread.device
            device = index
        if not 0 <= device < len(self.devices):
            raise WrongDevice(
                f"there is no device {DEVICE_TYPE}:{device}: this machine has {len(self.devices)}"
            )
        return device

    def device(self, device: DeviceLike = None) -> SimDevice:
        return self.devices[self.index_of(device)]

    def set_device(self, device: DeviceLike) -> None:
        """Make `device` this thread's current one."""
        self._thread.device = self.index_of(device)

    def current_stream(self, device: DeviceLike = None) -> SimStream:
        """This thread's current stream on `device`, by default on its current device."""
        index = self.index_of(device)
        stream = self._thread.streams.get(index)
        return self.devices[index].default_stream if stream is None else stream

    def create_stream(self, device: DeviceLike = None, priority: int = 0) -> SimStream:
        """A new stream on `device`."""
        self.initialize()
        return SimStream(self.device(device), priority)

    def set_stream(self, stream: SimStream) -> None:
        """Make `stream` this thread's current one on its device. Raises ValueError if it is another machine's."""
        if stream.host not in self.devices:
            raise ValueError(f"{stream!r} belongs to another simulated machine")
        self._thread.streams[stream.device_index] = stream

    # Life.

    def initialize(self) -> None:
        """Create the context. Raises ForkedAfterUse in a child that was forked after it existed."""
        if self.in_bad_fork():
            raise ForkedAfterUse(
                f"{DEVICE_TYPE} was initialised before this process was forked, and cannot be used here: use the "
                "'spawn' start method"
            )
        if not self.initialized:
            self.initialized = True
            self._owner = os.getpid()

    @property
    def owner(self) -> int:
        """The process that made the machine, or that initialised it."""
        return self._owner

    def in_bad_fork(self) -> bool:
        return self.initialized and os.getpid() != self._owner

    def synchronize(self, device: DeviceLike = None) -> None:
        """Wait until everything submitted to `device` has retired."""
        self.initialize()
        self.device(device).synchronize()

    def empty_cache(self) -> None:
        """Give back what no allocation needs, on every device. Does nothing before the machine is initialised."""
        if not self.initialized:
            return
        for device in self.devices:
            device.empty_cache()

    def allocator_settings(self) -> list[AllocatorSetting]:
        """The allocators' settings; `SimConfig` explains them."""
        shown = ("caching", "rounding", "small_limit", "small_segment", "large_limit", "large_segment")
        config = self.devices[0].allocator.config
        return [AllocatorSetting(name, str(getattr(config, name)), name in _CHANGEABLE) for name in shown]

    def set_allocator_setting(self, name: str, value: str) -> None:
        """Change a setting of every device's allocator. Raises ValueError where that cannot be."""
        if name not in _CHANGEABLE:
            raise ValueError(
                f"{name!r} is no setting that can be changed: those are {', '.join(_CHANGEABLE)}"
            )
        if _NUMBER.fullmatch(value) is None:
            raise ValueError(f"{name} is a number of bytes in digits, and not {value[:100]!r}")
        now = self.devices[0].allocator.config
        if name == "small_limit":
            now = replace(now, small_limit=int(value))
        else:
            now = replace(now, large_limit=int(value))
        for device in self.devices:
            device.allocator.config = now

    # What tests arrange.

    def other_process(self, nbytes: int, device: DeviceLike = 0) -> OtherProcess:
        """Let somebody else hold `nbytes` on `device`: what the driver calls free falls by as many.

        Raises ValueError when that many are not free.
        """
        return OtherProcess(self.device(device).memory, nbytes)

    @contextmanager
    def inject(self, *faults: Fault) -> Iterator[FaultScript]:
        """Run a block under `faults`. Scripts nest; hangs end with the block."""
        script = FaultScript(faults, self.clock)
        self._scripts.append(script)
        try:
            yield script
        finally:
            script.release()
            self._scripts.remove(script)

    @property
    def scripted(self) -> bool:
        """True while faults are in place."""
        return bool(self._scripts)

    def visit(self, operation: str, index: int | None) -> bool:
        """Run the scripted faults of one use of `operation`; True asks for an out-of-memory error."""
        if not self._scripts:
            return False
        wants_oom = [script.visit(operation, index) for script in tuple(self._scripts)]
        return any(wants_oom)
