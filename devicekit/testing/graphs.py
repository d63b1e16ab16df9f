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

__all__ = ["SimGraph"]


class SimGraph:
    """Captured work of one device, with a private memory pool for what it allocates."""

    def __init__(self, device: SimDevice) -> None:
        self._device = device
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
        self._pool = device.allocator.create_pool()
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
            self._device.allocator.release_pool(self._pool)
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
