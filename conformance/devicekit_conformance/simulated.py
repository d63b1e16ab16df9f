"""The simulated accelerator as a backend to judge, in the habits of several honest machines.

Addresses: ``devicekit_conformance.simulated:discrete`` and, in its place, ``rounding_to_2mib``, ``uncached``,
``synchronous``, ``slow_driver``, ``unified`` or ``lazy``; the probe to judge them with is ``SimProbe`` of this
module. One process has one machine, so an address is good for the life of the process that first asks for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Sequence

import torch

from devicekit.contract.manifest import Manifest
from devicekit.testing import GIB, Fault, LoseDevice, SimConfig, enable, sim_backend
from devicekit.testing.errors import ForkedAfterUse
from devicekit.testing.streams import SimStream, StreamFence

_CAPACITY = 16 * GIB  # address space only: nothing is written that no test writes
_WORK_SECONDS = 0.02

_VARIANTS = {
    "discrete": SimConfig,
    "rounding_to_2mib": SimConfig.rounding_to_2mib,
    "uncached": SimConfig.uncached,
    "synchronous": SimConfig.synchronous,
    "slow_driver": SimConfig.slow_driver,
    "unified": SimConfig.unified,
    "lazy": SimConfig.lazy,
}


def become(variant: str) -> Manifest:
    """Make this process a machine of one kind, and return its backend's manifest.

    Raises:
        ValueError: this process is another machine already.
    """
    config = dataclasses.replace(_VARIANTS[variant](), capacity=_CAPACITY, fill_uninitialized=False)
    enable(config)
    return sim_backend.manifest()


def __getattr__(name: str) -> type[sim_backend.SimBackend]:
    if name not in _VARIANTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return type(name, (sim_backend.SimBackend,), {"manifest": become(name)})


class SimProbe:
    """The suite's road to the simulated machine: torch's own functions and the machine itself, never its hooks."""

    def tensor(self, size: int, index: int) -> torch.Tensor:
        return torch.empty(size, dtype=torch.uint8, device=torch.device("sim", index))

    def initialised(self) -> bool | None:
        return enable().initialized

    def current_index(self) -> int | None:
        return enable().index_of()

    @property
    def runtime(self) -> object:
        """torch's own module for the device."""
        return torch.get_device_module("sim")

    def now(self) -> float:
        """The machine's own clock, in seconds: its work takes no time of the host's."""
        return enable().clock.now()

    def submit(self, index: int, stream: object | None) -> StreamFence | None:
        return self.submit_long(index, stream, _WORK_SECONDS)

    def submit_long(self, index: int, stream: object | None, seconds: float) -> StreamFence:
        """Queue work of so many seconds of the machine's time."""
        machine = enable()
        machine.initialize()
        chosen = stream if isinstance(stream, SimStream) else machine.current_stream(index)
        chosen.submit("work", seconds)
        return chosen.fence()

    def provoke(self, kind: str, index: int) -> BaseException | None:
        """What the machine raises where something of that kind happens to it; ``None`` if it cannot be made to."""
        machine = enable()
        try:
            if kind == "device_lost":
                with machine.inject(Fault("synchronize", LoseDevice(), index=index)):
                    machine.synchronize(index)
            elif kind == "wrong_device":
                self.tensor(16, len(machine.devices) + 3)
            elif kind == "not_initialised":
                raise ForkedAfterUse(
                    "sim was initialised before this process was forked, and cannot be used here"
                )
        except Exception as error:  # whatever it is, the backend must know it
            return error.with_traceback(None)
        return None

    def exhaust(self, index: int) -> BaseException:
        kept = []
        try:
            while True:
                kept.append(self.tensor(GIB, index))
        except Exception as error:  # whatever the machine calls it is what the backend must recognise
            return error.with_traceback(None)

    def random(self, index: int, count: int) -> Sequence[float]:
        found: list[float] = torch.rand(count, device=torch.device("sim", index)).cpu().tolist()
        return found

    def held(self, index: int) -> int | None:
        return enable().device(index).allocator.counters.current("reserved_bytes")

    @contextlib.contextmanager
    def others_take(self, index: int, size: int) -> Iterator[None]:
        """Inside, another process holds so many bytes of the device."""
        taken = enable().other_process(size, index)
        try:
            yield
        finally:
            taken.release()

    def pinned(self, tensor: torch.Tensor) -> bool | None:
        return tensor.is_pinned()
