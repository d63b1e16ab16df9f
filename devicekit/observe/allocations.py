"""Watches a device's allocations from the outside, on any backend, through adaptors that combine in any order.

::

    tracker = Track()
    with watch(device, Limit(8 << 30), tracker, AllocationLog("run.jsonl")):
        model(inputs)
    print(tracker.report())

What is seen: every storage that a torch operator makes on this device, in the threads that are inside the ``with``
block and in the threads that run their backward passes, with the bytes that were asked for (a caching allocator
rounds them up); and the moment each of them is freed, on any thread, even after the block has ended.

What is not seen: scratch memory inside an operator, what compiled or captured code allocates by itself, extensions
and libraries that bypass torch's dispatcher, tensors that were there before, other processes. ``memory_scope`` and
`devicekit.Device.memory_stats` speak for the whole allocator instead.

Cost: some ten microseconds an operator inside the block; outside it nothing, since nothing is in place.
"""

from __future__ import annotations

import itertools
import threading
import time
import weakref
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import cast

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from devicekit.contract.records import ErrorKind
from devicekit.device import Device
from devicekit.observe.storages import bytes_to_come, is_first_sight, storages


@dataclass(frozen=True, slots=True)
class Allocation:
    """One storage on the device."""

    number: int  # unique in this process
    bytes: int  # as asked for
    operator: str  # for example "aten.empty.memory_format"
    thread: int  # who allocated, as `threading.get_ident` names it
    at: float  # seconds of `time.perf_counter`


class Adaptor:
    """What `watch` tells of allocations. Each method does nothing here: override the ones you need.

    Methods are called with a lock held that serialises all adaptors of the device; allocations made by an adaptor
    itself are not seen.
    """

    def admit(self, size: int) -> None:
        """Called before ``size`` bytes are allocated. Raise an out-of-memory error to prevent it."""

    def allocated(self, allocation: Allocation) -> None:
        """Called after a storage was allocated."""

    def refuse(self) -> Exception | None:
        """Called when every adaptor knows of a result: an error to raise instead of handing it out."""
        return None

    def freed(self, allocation: Allocation, at: float) -> None:
        """Called after a storage was freed, ``at`` seconds of `time.perf_counter`."""

    def out_of_memory(self, error: Exception, size: int | None, attempt: int) -> bool:
        """An operator that wanted ``size`` bytes (``None``: unknown) failed. True: try it once more.

        ``attempt`` counts from 1. Called without the lock.
        """
        return False


@contextmanager
def watch(device: Device, *adaptors: Adaptor) -> Iterator[None]:
    """Let ``adaptors`` see what this thread allocates on ``device`` inside the ``with`` block.

    The order of adaptors makes no difference, nor does it whether they come in one block or in nested ones:
    limits are asked first, then the operator runs, then all take note, and a failure is offered to whoever can
    make room. One adaptor may serve several threads, each with a block of its own.
    """
    mine = _modes.__dict__.setdefault("by_device", {})
    mode: _Mode | None = mine.get(device)
    if mode is not None:
        mode.adaptors += adaptors
        try:
            yield
        finally:
            mode.adaptors = mode.adaptors[: len(mode.adaptors) - len(adaptors)]
        return
    mode = mine[device] = _Mode(device, adaptors)
    try:
        with mode:
            yield
    finally:
        del mine[device]
        mode.live.settle()


_modes = threading.local()  # by_device: dict[Device, _Mode]
_numbers = itertools.count(1)


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]  # torch does not type its hook for subclasses
    """Sees the operators of one thread."""

    def __init__(self, device: Device, adaptors: tuple[Adaptor, ...]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # nor this
        self.device = device
        self.adaptors = adaptors
        self.live = _live_on(device)

    def __torch_dispatch__(
        self,
        func: torch._ops.OpOverload,
        types: Sequence[type],
        args: Sequence[object] = (),
        kwargs: Mapping[str, object] | None = None,
    ) -> object:
        options = kwargs or {}
        size = bytes_to_come(func, args, options, self._is_here)
        attempt = 1
        while True:
            try:
                return self._run(func, args, options, size)
            except Exception as error:
                if not self._makes_room(func, error, size, attempt):
                    raise
            attempt += 1

    def _is_here(self, where: torch.device) -> bool:
        own = self.device.torch_device
        if where == own or where.type != own.type:
            return where == own
        # Without an index it is the current device that is meant.
        index = cast("int | None", where.index)  # torch's stubs say int
        if index is not None or not self.device.supports("current_index"):
            return False
        return self.device.current_index() == self.device.index

    def _run(
        self,
        func: torch._ops.OpOverload,
        args: Sequence[object],
        options: Mapping[str, object],
        size: int | None,
    ) -> object:
        if size:
            self.live.admit(size, self.adaptors)
        result: object = func(*args, **options)
        refusal = self.live.note(func, (args, options), result, self.adaptors)
        if refusal is not None:
            del result  # the error's traceback would keep it
            raise refusal
        return result

    def _makes_room(
        self, func: torch._ops.OpOverload, error: Exception, size: int | None, attempt: int
    ) -> bool:
        if self.device.classify_error(error) is not ErrorKind.OUT_OF_MEMORY:
            return False
        answers = [adaptor.out_of_memory(error, size, attempt) for adaptor in self.adaptors]
        # An operator that writes into its arguments may have written: running it again would not be the same.
        return any(answers) and not func._schema.is_mutable


class _Live:
    """The storages on one device that some adaptor has seen, whichever thread made them."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._lock = threading.RLock()
        # By the storage's address; the reference keeps its callback, and the adaptors hear of the end.
        self._entries: dict[
            int, tuple[Allocation, weakref.ref[torch.UntypedStorage], tuple[Adaptor, ...]]
        ] = {}
        # A storage may die inside a garbage collection, at any line, this lock held or not: its callback only
        # leaves a note here.
        self._dead: deque[tuple[int, float]] = deque()

    def admit(self, size: int, adaptors: tuple[Adaptor, ...]) -> None:
        with self._lock:
            self.settle()
            for adaptor in adaptors:
                adaptor.admit(size)

    def note(
        self, func: torch._ops.OpOverload, given: object, result: object, adaptors: tuple[Adaptor, ...]
    ) -> Exception | None:
        made = {storage._cdata: storage for storage in storages(result, self._device)}
        if not made:
            return None
        old = set[int]()
        if not is_first_sight(func):
            old = {storage._cdata for storage in storages(given, self._device)}
        with self._lock:
            self.settle()
            for key, storage in made.items():
                entry = self._entries.get(key)
                if entry is not None and entry[0].bytes != storage.nbytes():  # resized in place
                    self._end(key, time.perf_counter())
                elif entry is not None or key in old:
                    continue
                self._begin(key, storage, str(func), adaptors)
            refusals = [refusal for adaptor in adaptors if (refusal := adaptor.refuse()) is not None]
        return refusals[0] if refusals else None

    def settle(self) -> None:
        """Tell the adaptors of every storage that has died."""
        with self._lock:
            while self._dead:
                self._end(*self._dead.popleft())

    def _begin(
        self, key: int, storage: torch.UntypedStorage, operator: str, adaptors: tuple[Adaptor, ...]
    ) -> None:
        now, dead = time.perf_counter(), self._dead
        allocation = Allocation(next(_numbers), storage.nbytes(), operator, threading.get_ident(), now)
        reference = weakref.ref(storage, lambda _: dead.append((key, time.perf_counter())))
        self._entries[key] = (allocation, reference, adaptors)
        for adaptor in adaptors:
            adaptor.allocated(allocation)

    def _end(self, key: int, at: float) -> None:
        allocation, _, adaptors = self._entries.pop(key)
        for adaptor in adaptors:
            adaptor.freed(allocation, at)


_live: dict[torch.device, _Live] = {}
_live_lock = threading.Lock()


def _live_on(device: Device) -> _Live:
    with _live_lock:
        return _live.setdefault(device.torch_device, _Live(device.torch_device))


def settle(device: Device | None = None) -> None:
    """Bring every adaptor up to date with what has been freed. Adaptors' own queries do this by themselves."""
    with _live_lock:
        chosen = [live for where, live in _live.items() if device is None or where == device.torch_device]
    for live in chosen:
        live.settle()
