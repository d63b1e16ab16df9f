"""The simulated accelerator as a backend to judge, in the habits of several honest machines.

Addresses: ``devicekit_conformance.simulated:discrete`` and, in its place, ``rounding_to_2mib``, ``uncached``,
``synchronous``, ``slow_driver`` or ``unified``; the probe to judge them with is ``SimProbe`` of this module.
One process has one machine, so an address is good for the life of the process that first asks for it.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import torch

from devicekit.contract.manifest import Manifest
from devicekit.testing import GIB, SimConfig, enable, sim_backend
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

    def submit(self, index: int, stream: object | None) -> StreamFence | None:
        machine = enable()
        machine.initialize()
        chosen = stream if isinstance(stream, SimStream) else machine.current_stream(index)
        chosen.submit("work", _WORK_SECONDS)
        return chosen.fence()

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

    def pinned(self, tensor: torch.Tensor) -> bool | None:
        return tensor.is_pinned()
