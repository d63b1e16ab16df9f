"""Graph capture: work is noted instead of run, and runs again, on the same bytes, at each replay.

While a thread captures, nothing of what it submits to that device runs or takes time. Tensors that captured work
creates hold unspecified bytes until the first replay. Waiting, reading a value back, emptying the cache and copies
that the host waits for are errors then, as they are on hardware.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from devicekit.testing.errors import CaptureError

if TYPE_CHECKING:
    from devicekit.testing.sim_device import SimDevice

__all__ = ["SimGraph", "SimGraphPool"]


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
        device.capturing = self
        try:
            yield
        except BaseException:
            device.capturing = None
            self.reset()
            raise
        finally:
            device.capturing = None
            device.use_pool(before)

    def replay(self) -> None:
        """Run the captured work on this thread's current stream. Raises CaptureError when nothing was captured."""
        if self._pool is None:
            raise CaptureError("this graph holds no captured work")
        self._device.launch("graph", kernels=max(len(self._steps), 1))
        with torch.no_grad():
            for run, captured in self._steps:
                _write_back(run(), captured)

    def reset(self) -> None:
        """Drop the captured work. Its memory goes back to the driver when the cache is emptied next."""
        self._steps.clear()
        if self._pool is not None:
            self._shared.leave()
            self._pool = None

    def note(self, run: Callable[[], object], written: object) -> object:
        """Take in one operation; `written` is what it returns when it only writes to its arguments, else None."""
        if written is not None:
            self._steps.append((run, None))
            return written
        # It has to run once, for only its result says what shape later work sees.
        result = run()
        self._steps.append((run, result))
        return result


def _write_back(fresh: object, captured: object) -> None:
    if isinstance(captured, torch.Tensor) and isinstance(fresh, torch.Tensor):
        if fresh.data_ptr() != captured.data_ptr():
            captured.copy_(fresh)
    elif isinstance(captured, tuple | list) and isinstance(fresh, tuple | list):
        for new, old in zip(fresh, captured, strict=True):
            _write_back(new, old)
