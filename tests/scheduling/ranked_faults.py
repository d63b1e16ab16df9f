"""The steps of control operations at which one rank, and only it, can be made to fail, lag or die."""

from __future__ import annotations

import os
import signal
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist

from devicekit.contract.records import DeviceProperties
from devicekit.device import Device
from devicekit.scheduling.messages import Drain, Selector
from devicekit.scheduling.state import Participant, SchedulerState
from devicekit.scheduling.verbs.control import Control
from devicekit.weights.install import WeightControl
from devicekit.weights.occupation import MemoryTag, Region
from devicekit.weights.operations import UpdateWeightsFromIPC, UpdateWeightsFromStream
from devicekit.weights.store import Loaded, Staged
from devicekit.weights.streamed import stream_handler
from devicekit.weights.tensors import ipc_handler

POINTS = (
    "stage",  # bringing new weights
    "write",  # before the first of them is written
    "written",  # after the last
    "let go",  # of what another process lent
    "flush",  # a cache beside the KV
    "empty",  # the allocator's cache
    "empty host",
    "back up",
    "release weights",
    "release kv_cache",
    "resume weights",
    "resume kv_cache",
    "drain",
)
SLOW = 0.05  # seconds


def fail() -> None:
    raise ValueError("boom")


def lag() -> None:
    threading.Event().wait(SLOW)


def die() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def run_out_of_memory() -> None:
    raise torch.OutOfMemoryError("no more")


ACTS: dict[str, Callable[[], None]] = {
    "fail": fail,
    "lag": lag,
    "die": die,
    "run out of memory": run_out_of_memory,
}


class Faults:
    """What is to happen on this rank, by the step at which it does: acts in their order, one each time."""

    def __init__(self) -> None:
        self.armed: dict[str, deque[str]] = {}

    def arm(self, point: str, act: str, times: int = 1) -> None:
        assert point in POINTS
        self.armed.setdefault(point, deque()).extend([act] * times)

    def clear(self) -> None:
        self.armed.clear()

    def at(self, point: str) -> None:
        """That step is taken now."""
        acts = self.armed.get(point)
        if acts:
            ACTS[acts.popleft()]()

    def install(self, control: Control, state: SchedulerState, weights: WeightControl) -> None:
        """Be asked at every step of every operation of this rank."""
        store, occupation, device = weights.store, weights.occupation, Lending(self, weights.store.device)
        stage = store.stage

        def staging(*arguments: object, **more: object) -> Staged:
            self.at("stage")
            return Watched(self, stage(*arguments, **more))  # type: ignore[arg-type]

        store.stage = staging  # type: ignore[method-assign, assignment]
        store.device = state.releases.device = device  # type: ignore[assignment]
        control.register(UpdateWeightsFromIPC, ipc_handler(weights.updater))
        streaming = stream_handler(weights.updater, control.begin)
        control.register(UpdateWeightsFromStream, streaming, closes_admission=True)
        drain = control._handlers[Drain]

        def draining(operation: Drain):  # type: ignore[no-untyped-def]
            self.at("drain")
            return drain(operation)

        control.register(Drain, draining, closes_admission=True)
        for tag in (MemoryTag.KV_CACHE, MemoryTag.WEIGHTS):
            occupation._regions[tag] = Watching(self, tag.value, occupation._regions[tag])
        back_up = occupation._weights.back_up

        def backing_up() -> int:
            self.at("back up")
            return back_up()

        occupation._weights.back_up = backing_up  # type: ignore[method-assign]
        state.participants.register(Participant("grammar", lambda: self.at("flush")))


@dataclass
class Watched:
    """Weights that are about to be written."""

    faults: Faults
    staged: Staged

    @property
    def names(self) -> frozenset[tuple[Selector, str]]:
        return self.staged.names

    def write(self) -> Loaded:
        self.faults.at("write")
        loaded = self.staged.write()
        self.faults.at("written")
        return loaded

    def close(self) -> None:
        self.staged.close()


@dataclass
class Watching:
    """A region of memory."""

    faults: Faults
    name: str
    region: Region

    def release(self) -> int | None:
        self.faults.at(f"release {self.name}")
        return self.region.release()

    def resume(self) -> int | None:
        self.faults.at(f"resume {self.name}")
        return self.region.resume()


class Lending:
    """A device whose releasing functions may fail."""

    __class__ = Device  # type: ignore[assignment]  # for whoever asks what it is

    def __init__(self, faults: Faults, device: Device) -> None:
        self._faults = faults
        self._device = device

    def __getattr__(self, name: str) -> object:
        return getattr(self._device, name)

    def properties(self) -> DeviceProperties:
        """As of an accelerator of its own for each rank."""
        return replace(self._device.properties(), uuid=f"rank-{dist.get_rank()}")

    def empty_cache(self) -> object:
        self._faults.at("empty")
        return self._device.empty_cache()

    def empty_host_cache(self) -> object:
        self._faults.at("empty host")
        return self._device.empty_host_cache()

    def collect_ipc(self) -> object:
        self._faults.at("let go")
        return self._device.collect_ipc()
