"""Graph capture: work is noted instead of run, and runs again, on the same bytes, at each replay.

While a thread captures, what it submits to that device takes no time and writes to nothing that was there
before. Tensors that captured work creates hold unspecified bytes until the first replay. Nothing can read them,
but they are what the work would have made, so that indices computed in a capture can be used in it. Waiting,
reading a value back, masks that select, indices on the host, emptying the cache and copies that the host waits for
are errors then, as on hardware. So is a replay once memory that the work refers to was freed, where hardware reads
or writes whatever is there by then.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch

from devicekit.testing.errors import CaptureError

if TYPE_CHECKING:
    from devicekit.testing.sim_device import Lease, SimDevice

__all__ = ["SimGraph", "SimGraphPool", "Written"]


@dataclass(frozen=True, slots=True)
class Written:
    """What an operator returns that makes no tensor: arguments of its own, or nothing."""

    result: object


class SimGraphPool:
    """A private memory pool that graphs share. It is released with the last of them."""

    def __init__(self, device: SimDevice) -> None:
        self.device = device
        self._number: int | None = None
        self._users = 0

    def enter(self) -> int:
        if self._number is None:
            self._number = self.device.allocator.create_pool()
        self._users += 1
        return self._number

    def leave(self) -> None:
        self._users -= 1
        if self._users == 0 and self._number is not None:
            self.device.allocator.release_pool(self._number)
            self._number = None


class SimGraph:
    """Captured work of one device, with a memory pool, of its own or shared, for what it allocates.

    Raises TypeError or ValueError for a pool that is none, or another device's.
    """

    def __init__(self, device: SimDevice, pool: object | None = None) -> None:
        if pool is not None and not isinstance(pool, SimGraphPool):
            raise TypeError(f"a pool comes from graph_pool(), not {pool!r}")
        if pool is not None and pool.device is not device:
            raise ValueError("the pool belongs to another device")
        self._device = device
        self._shared = SimGraphPool(device) if pool is None else pool
        self._pool: int | None = None
        self._steps: list[tuple[Callable[[], object], object]] = []
        self._foreign: set[weakref.ref[Lease]] = set()  # what the work refers to and has not made

    @contextmanager
    def capture(self) -> Iterator[None]:
        """Note the work submitted inside the block. Raises CaptureError when this thread captures already."""
        device = self._device
        if device.capturing is not None:
            raise CaptureError("a graph is being captured on this device already")
        device.machine.initialize()
        self.reset()
        self._pool = self._shared.enter()
        before = device.use_pool(self._pool)
        random = device.generator.get_state()
        device.capturing = self
        try:
            yield
        except BaseException:
            device.capturing = None
            self.reset()
            raise
        finally:
            device.capturing = None
            device.generator.set_state(random)
            device.use_pool(before)

    def replay(self) -> None:
        """Run the captured work on this thread's current stream.

        Raises CaptureError when nothing was captured, or when something that it refers to is gone.
        """
        if self._pool is None:
            raise CaptureError("this graph holds no captured work")
        if any(lease() is None for lease in self._foreign):
            raise CaptureError("this graph refers to memory that was freed after it was captured")
        self._device.launch("graph", kernels=max(len(self._steps), 1))
        # Tensors that a capture made in inference mode can be written to only there.
        with torch.inference_mode():
            for run, captured in self._steps:
                _write_back(run(), captured)

    def reset(self) -> None:
        """Drop the captured work. Its memory goes back to the driver when the cache is emptied next."""
        self._steps.clear()
        self._foreign.clear()
        if self._pool is not None:
            self._shared.leave()
            self._pool = None

    def note(
        self,
        run: Callable[[], object],
        *,
        writes: Sequence[torch.Tensor],
        result: Written | None,
        imagine: Callable[[], object] | None = None,
    ) -> object:
        """Take in one operation, and return what later work may see of it.

        `writes` are the tensors from before this capture that it writes to; `result` is what it returns, if it
        makes no tensor; `imagine` makes a result of the same shape where it cannot run on the bytes of now.
        """
        if writes and result is not None:
            return self._take(run, result.result)
        try:
            with _unchanged(writes):
                out = run()
        except (IndexError, RuntimeError):
            # Perhaps for what a buffer holds that is only filled before a replay: hardware does not look yet.
            if imagine is None:
                raise
            try:
                out = imagine()
            except Exception:
                out = None
            if out is None:
                raise
            out = out if result is None else result.result
        if result is not None:
            return self._take(run, out)
        self._steps.append((run, out))
        return out

    def refer(self, lease: Lease | None) -> None:
        """Say that captured work reads or writes memory. ``None``: of no bytes."""
        if lease is not None and lease.graph is not self:
            self._foreign.add(weakref.ref(lease))

    def note_later(self, run: Callable[[], object]) -> None:
        """Take in an operation that has no effect before a replay."""
        self._steps.append((run, None))

    def _take(self, run: Callable[[], object], out: object) -> object:
        self._steps.append((run, None))
        return out


@contextmanager
def _unchanged(tensors: Sequence[torch.Tensor]) -> Iterator[None]:
    """Give `tensors` back the bytes that they hold now."""
    saved = [(tensor, tensor.clone()) for tensor in tensors]
    try:
        yield
    finally:
        for tensor, before in saved:
            tensor.copy_(before)


def _write_back(fresh: object, captured: object) -> None:
    if isinstance(captured, torch.Tensor) and isinstance(fresh, torch.Tensor):
        if fresh.data_ptr() != captured.data_ptr():
            captured.copy_(fresh)
    elif isinstance(captured, tuple | list) and isinstance(fresh, tuple | list):
        for new, old in zip(fresh, captured, strict=True):
            _write_back(new, old)
