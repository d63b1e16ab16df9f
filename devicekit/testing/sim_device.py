"""One simulated device: memory through its allocator, work through its streams, random numbers of its own."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

import torch

from devicekit.testing.active import DEVICE_TYPE
from devicekit.testing.allocator import CachingAllocator
from devicekit.testing.blocks import Block
from devicekit.testing.driver import Holder, PhysicalMemory
from devicekit.testing.errors import CaptureError
from devicekit.testing.graphs import SimGraph
from devicekit.testing.poison import fill_with_poison
from devicekit.testing.streams import Operation, SimStream

if TYPE_CHECKING:
    from devicekit.testing.simulator import Simulator

__all__ = ["AsyncCopy", "Lease", "SimDevice"]


class AsyncCopy:
    """A copy that is queued: which device bytes it reads, so that reusing them too early can be seen."""

    def __init__(self, device_bytes: torch.Tensor, stream: SimStream) -> None:
        self.device_bytes = device_bytes
        self.stream = stream
        self.operation: Operation | None = None

    @property
    def reads_later(self) -> bool:
        return self.operation is not None and self.operation.device_part is not None


class Lease:
    """The right to one block. Tensors that share bytes share it, and the block is freed with the last of them.

    Without a block it stands for memory that another process allocated.
    """

    __slots__ = ("__weakref__", "block", "copies", "device", "graph", "nbytes", "stream_id", "users")

    def __init__(self, device: SimDevice, block: Block | None, stream_id: int, nbytes: int) -> None:
        self.device = device
        self.block = block
        self.nbytes = nbytes
        self.stream_id = stream_id
        #: The graph in whose capture the bytes were allocated.
        self.graph = device.capturing
        self.users: set[SimStream] = set()
        self.copies: list[AsyncCopy] = []

    def __del__(self) -> None:
        if self.block is not None:
            self.device.release(self, self.block)


class SimDevice:
    """Device `index` of a machine."""

    def __init__(self, machine: Simulator, index: int, memory: PhysicalMemory) -> None:
        self.machine = machine
        self.index = index
        self.memory = memory
        self.clock = machine.clock
        self.lock = machine.lock
        self.tail = 0.0
        self.fraction = 1.0
        self.blocking_launches = machine.config.blocking_launches
        self.poll_seconds = machine.config.poll_seconds
        self.generator = torch.Generator("cpu")
        self.allocator = CachingAllocator(machine.config, self, base_address=(index + 1) << 40)
        self._thread = threading.local()
        # Copies in other streams that still read a block which was freed under them.
        self._endangered: list[tuple[int, int, AsyncCopy]] = []
        self.default_stream = SimStream(self, stream_id=0)

    def visit(self, operation: str) -> None:
        """Run the scripted faults of `operation`. Raises what they raise."""
        if self.machine.visit(operation, self.index):
            self.allocator.refuse(0)

    @property
    def capturing(self) -> SimGraph | None:
        """The graph that this thread captures on this device."""
        return getattr(self._thread, "graph", None)

    @capturing.setter
    def capturing(self, graph: SimGraph | None) -> None:
        self._thread.graph = graph

    def refuse_capture(self, what: str) -> None:
        """Raise CaptureError when this thread captures a graph."""
        if self.capturing is not None:
            raise CaptureError(
                f"{what} cannot be part of a graph, and one is being captured on device {self.index}"
            )

    # Memory.

    def allocate(self, nbytes: int) -> Lease:
        """Take `nbytes` for this thread's current stream. Raises torch.OutOfMemoryError."""
        self.machine.initialize()
        if self.machine.visit("allocate", self.index):
            self.allocator.refuse(nbytes)
        stream = self.machine.current_stream(self.index)
        counters = self.allocator.counters
        before = counters.num_device_alloc, counters.num_device_free
        block = self.allocator.malloc(
            nbytes, stream=stream.stream_id, pool=getattr(self._thread, "pool", None)
        )
        self._charge_driver(*before)
        if self._endangered:
            self._overwrite(block)
        return Lease(self, block, stream.stream_id, nbytes)

    def release(self, lease: Lease, block: Block) -> None:
        """Free the `block` of `lease`, holding it active while a stream that was recorded for it is busy."""
        for copy in lease.copies:
            if copy.reads_later and copy.stream.stream_id != lease.stream_id:
                self._endangered.append((block.address, block.address + block.size, copy))
        self.allocator.free(block, tuple(stream.fence() for stream in lease.users))

    def empty_cache(self) -> None:
        """Wait for the device, then give segments without an active block back to the driver."""
        self.visit("empty_cache")
        self.refuse_capture("emptying the cache")
        counters = self.allocator.counters
        before = counters.num_device_alloc, counters.num_device_free
        self.synchronize()
        self.allocator.empty_cache()
        self._charge_driver(*before)

    def set_fraction(self, fraction: float) -> None:
        """Allow this process `fraction` of the device's memory. Raises TypeError or ValueError when it is none."""
        if not isinstance(fraction, float):
            raise TypeError(f"a fraction is a float from 0 to 1, not {fraction!r}")
        if not 0.0 <= fraction <= 1.0:
            raise ValueError(f"a fraction is from 0 to 1, not {fraction!r}")
        self.fraction = fraction
        self.allocator.limit = int(self.memory.total * fraction)

    def use_pool(self, pool: int | None) -> int | None:
        """Allocate from a private pool in this thread from now on; returns the pool that was in use."""
        before: int | None = getattr(self._thread, "pool", None)
        self._thread.pool = pool
        return before

    # The allocator's driver.

    @property
    def _holder(self) -> Holder:
        # Of the process that initialised the machine, which may be a fork of the one that made it.
        return Holder(self.machine.owner, f"{DEVICE_TYPE}:{self.index}")

    def take(self, nbytes: int) -> bool:
        if self.machine.visit("driver_allocate", self.index):
            return False
        return self.memory.take(self._holder, nbytes)

    def give(self, nbytes: int) -> None:
        self.memory.give(self._holder, nbytes)

    def drain(self) -> None:
        self.clock.advance_to(self.tail)

    def describe(self) -> str:
        return (
            f"{DEVICE_TYPE}:{self.index} has {self.memory.total} bytes, of which {self.memory.free} are free."
        )

    def _charge_driver(self, allocs: int, frees: int) -> None:
        config, counters = self.machine.config, self.allocator.counters
        seconds = (counters.num_device_alloc - allocs) * config.driver_alloc_seconds
        seconds += (counters.num_device_free - frees) * config.driver_free_seconds
        if seconds:
            self.clock.advance(seconds)

    def _overwrite(self, block: Block) -> None:
        start, end = block.address, block.address + block.size
        kept: list[tuple[int, int, AsyncCopy]] = []
        for low, high, copy in self._endangered:
            if copy.reads_later and low < end and start < high:
                fill_with_poison(copy.device_bytes)
            elif copy.reads_later:
                kept.append((low, high, copy))
        self._endangered = kept

    # Work.

    def synchronize(self) -> None:
        """Wait until every stream of this device is idle."""
        self.visit("synchronize")
        self.refuse_capture("waiting for the device")
        self.drain()
        self.allocator.retire()

    def run_kernel(self, name: str, run: Callable[[], object]) -> object:
        """Queue one kernel on this thread's current stream and apply its effect."""
        self.launch(name)
        return run()

    def launch(self, name: str, kernels: int = 1) -> None:
        """Queue kernels on this thread's current stream; their effect is the caller's to apply, at once."""
        machine = self.machine
        machine.initialize()
        if machine.scripted:
            self.visit("kernel")
            self.visit(f"kernel:{name}")
        machine.current_stream(self.index).launch(kernels * machine.config.kernel_seconds)

    def wait_for_host(self) -> None:
        """Let the host wait for this thread's current stream, as reading a value back does."""
        self.visit("wait")
        self.refuse_capture("reading a value back")
        self.clock.advance_to(self.machine.current_stream(self.index).tail)
