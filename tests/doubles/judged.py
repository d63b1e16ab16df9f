"""The first-party backends over their vendors' doubles, as the conformance suite addresses them.

Addresses: ``tests.doubles.judged:cuda`` and, in its place, any other vendor; the probe is ``DoubleProbe`` of this
module. A process has one double, put in torch's place before the plugin is imported.
"""

from __future__ import annotations

import importlib
import os
import random
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from devicekit.contract import Manifest
from devicekit_conformance.context import NotRun
from tests.doubles.driver import GIB, Card, Driver, Queue
from tests.doubles.vendors import FLAVOURS, Double, build, install

_WORK_MILLISECONDS = 20.0
# By the vendors' manuals, not by the plugins.
_VISIBLE = {
    "cuda": "CUDA_VISIBLE_DEVICES",
    "rocm": "HIP_VISIBLE_DEVICES",
    "xpu": "ZE_AFFINITY_MASK",
    "npu": "ASCEND_RT_VISIBLE_DEVICES",
    "musa": "MUSA_VISIBLE_DEVICES",
}
_COLLECTIVES = {"npu": "hccl", "musa": "mccl"}  # what importing the vendor's package registers
_installed: list[Double] = []


def __getattr__(name: str) -> type:
    if name not in FLAVOURS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if not _installed:
        _become(name)
    plugin = importlib.import_module(f"devicekit_{name}")
    manifest = Manifest.read(Path(str(plugin.__file__)).parent / "backend.toml")
    return type(name, (plugin.Backend,), {"manifest": manifest})


def _become(name: str) -> None:
    """Make this process a machine of one vendor."""
    double = build(FLAVOURS[name](None))
    driver = double.driver
    driver.hiding_variable = _VISIBLE[name]
    driver.cards = [Card(total=16 * GIB, padding=driver.padding) for _ in driver.cards]
    patch = _Forever()
    install(patch, double)
    patch.setattr(torch.Tensor, "pin_memory", lambda tensor: _pinned(tensor, driver))
    patch.setattr(torch.Tensor, "is_pinned", lambda tensor: _is_pinned(tensor, driver))
    if name in _COLLECTIVES:
        patch.setattr(dist.Backend, "backend_list", [*dist.Backend.backend_list, _COLLECTIVES[name]])
    os.register_at_fork(after_in_child=lambda: _forked(driver))
    _installed.append(double)


def _forked(driver: Driver) -> None:
    driver.forked = driver.initialised or driver.poisons_fork


class Block(torch.Tensor):
    """So many bytes on a double's card. They are counted, and hold nothing that could be read back."""

    _place: torch.device | None

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., object], types: object, args: Any = (), kwargs: object = None
    ) -> object:
        if func is torch.Tensor.fill_:
            return args[0]
        if func == torch.Tensor.device.__get__:  # type: ignore[attr-defined]  # torch's properties are descriptors
            if args[0]._place is None:
                raise NotRun("this torch has no such device type")
            return args[0]._place
        raise NotRun("a double's memory is counted and holds no contents")


@dataclass
class Pending:
    """Work on a double's clock, which moves when something waits."""

    driver: Driver
    until: float

    def done(self) -> bool:
        return self.driver.now >= self.until


class DoubleProbe:
    """The suite's road to a double: the driver below the vendor's module, never the module or a hook."""

    def __init__(self) -> None:
        (self._double,) = _installed
        self._driver = self._double.driver

    def tensor(self, size: int, index: int) -> torch.Tensor:
        handle = self._driver.allocate(index, size)
        if handle is None:
            raise self._double.flavour.out_of_memory(index, size, self._driver.cards[index].total)
        block = torch.empty(0, dtype=torch.uint8).as_subclass(Block)
        block._place = _place(self._double.flavour.surface.module.removeprefix("torch."), index)
        weakref.finalize(block, self._driver.cards[index].give_back, handle).atexit = False
        return block

    def initialised(self) -> bool | None:
        return self._driver.initialised

    def current_index(self) -> int | None:
        return self._driver.current

    def submit(self, index: int, stream: object | None) -> Pending:
        self._driver.initialised = True
        queue: Queue = self._driver.current_queues[index] if stream is None else getattr(stream, "_queue")  # noqa: B009
        queue.until = max(self._driver.now, queue.until) + _WORK_MILLISECONDS
        return Pending(self._driver, queue.until)

    def exhaust(self, index: int) -> BaseException:
        kept = []
        try:
            while True:
                kept.append(self.tensor(GIB, index))
        except Exception as error:
            return error.with_traceback(None)

    def random(self, index: int, count: int) -> Sequence[float]:
        seed = self._driver.seeds.get(index, 0)
        source = random.Random(seed)
        self._driver.seeds[index] = seed + 1
        return [source.random() for _ in range(count)]

    def held(self, index: int) -> int | None:
        return self._driver.cards[index].reserved

    def pinned(self, tensor: torch.Tensor) -> bool | None:
        return self._driver.locked(tensor.data_ptr(), 1)


def _is_pinned(tensor: torch.Tensor, driver: Driver) -> bool:
    """As torch says it, which asks where a tensor's storage begins."""
    return tensor.device.type == "cpu" and driver.locked(tensor.untyped_storage().data_ptr(), 1)


def _pinned(tensor: torch.Tensor, driver: Driver) -> torch.Tensor:
    if tensor.device.type != "cpu":
        raise RuntimeError(f"cannot pin {tensor.type()!r}: only dense CPU tensors can be pinned")
    if _is_pinned(tensor, driver) or not tensor.numel():
        return tensor
    found = tensor.clone()
    storage = found.untyped_storage()
    driver.pooled[storage.data_ptr()] = storage.nbytes()
    weakref.finalize(storage, driver.pooled.pop, storage.data_ptr(), None)
    return found


def _place(device_type: str, index: int) -> torch.device | None:
    try:
        return torch.device(device_type, index)
    except RuntimeError:  # only the vendor's own package gives the type its name
        return None


class _Forever:
    """Patches that are never undone: the process is this machine for as long as it lives."""

    def setattr(self, target: object, name: str, value: object, raising: bool = True) -> None:
        setattr(target, name, value)

    def setitem(self, mapping: dict[str, Any], name: str, value: object) -> None:
        mapping[name] = value
