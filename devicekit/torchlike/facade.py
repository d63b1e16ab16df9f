"""One module out of two: for each function the vendor's own, else that of ``torch.accelerator``, chosen once.

Either half may be missing or hollow: torch's own test device serves memory only through ``torch.accelerator``, and
Ascend's before 2.13 only through its module, with an internal assertion failing in the other.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import ModuleType, SimpleNamespace
from typing import cast

import torch

from devicekit.torchlike import statistics

_Function = Callable[..., object]

# How many arguments the hooks pass. A vendor's function that takes fewer serves only where there is one device.
_ARGUMENTS: Mapping[str, int] = {
    "is_available": 0,
    "device_count": 0,
    "is_initialized": 0,
    "_is_in_bad_fork": 0,
    "current_device": 0,
    "set_device": 1,
    "get_device_properties": 1,
    "synchronize": 1,
    "current_stream": 1,
    "stream": 1,
    "default_stream": 1,
    "set_stream": 1,
    "can_device_access_peer": 2,
    "is_current_stream_capturing": 0,
    "graph_pool_handle": 0,
    "empty_cache": 0,
    "host_memory_stats": 0,
    "memory_stats": 1,
    "mem_get_info": 1,
    "memory_snapshot": 0,
    "reset_peak_memory_stats": 1,
    "set_per_process_memory_fraction": 2,
    "use_mem_pool": 2,
    "manual_seed": 1,
    "get_rng_state": 1,
    "set_rng_state": 2,
}
# Where a function has its index. Asked for a device that is not there, no vendor's of these does harm.
_INDEX_AT: Mapping[str, int] = {
    "set_device": 0,
    "device": 0,
    "get_device_properties": 0,
    "synchronize": 0,
    "current_stream": 0,
    "default_stream": 0,
    "memory_stats": 0,
    "mem_get_info": 0,
    "reset_peak_memory_stats": 0,
    "get_rng_state": 0,
    "set_rng_state": 1,
}
_OF_THE_ALLOCATOR = frozenset({"memory_stats", "mem_get_info", "reset_peak_memory_stats"})
_CLASSES = ("Stream", "Event", "MemPool", "graph", "device")
_PARTS = ("memory",)  # submodules
_MADE_WITH = {"Stream": 2, "Event": 1}  # arguments that the hooks give
# What torch answers for whatever device is its accelerator.
_UNTRIED = frozenset({"is_available", "device_count", "current_device", "set_device", "device"})
# What every allocator behind torch.accelerator counts.
_MAINTAINED = frozenset({"allocated_bytes", "reserved_bytes"})


def facade(
    device_type: str, graph_class: str, served: Collection[str] = (), lenient: Collection[str] = ()
) -> ModuleType:
    """The functions that hooks may use for ``torch.<device_type>``, and no others.

    Args:
        served: of what torch itself has for every device, what works for this one; see `served_by_torch`.
        lenient: what is to be held to devices that exist; see `lenient_functions`.

    Raises:
        ImportError: torch has no such module.
    """
    own = getattr(torch, device_type, None)
    if own is None:
        raise ImportError(
            f"torch {torch.__version__} has no torch.{device_type}. Import the package that provides it first."
        )
    found = ModuleType(f"torch.{device_type}")
    indexed = hasattr(own, "set_device")
    for name, arguments in _ARGUMENTS.items():
        if (function := _fitting(getattr(own, name, None), arguments, indexed)) is not None:
            setattr(found, name, function)
    for name in (*_CLASSES, graph_class):
        kind = getattr(own, name, None)
        if not _made_as_torchs_own(kind) and _fitting(kind, _MADE_WITH.get(name, 0), True) is not None:
            setattr(found, name, kind)
    for name in _PARTS:
        if hasattr(own, name):
            setattr(found, name, getattr(own, name))
    if hasattr(found, "current_device"):  # torch.cpu answers with a word
        index = found.current_device
        found.current_device = lambda: value if isinstance(value := index(), int) else 0  # type: ignore[attr-defined]
    for name, function in _reshaped(own).items():
        setattr(found, name, function)
    known = {*served, *(_UNTRIED if _is_current(device_type) else ())}
    _add_missing(found, {name: one for name, one in _of_torch(device_type).items() if name in known})
    _add_missing(found, _for_single_device(found, indexed))
    for name in _INDEX_AT.keys() & set(lenient):
        if hasattr(found, name):
            setattr(
                found, name, _strict(getattr(found, name), _INDEX_AT[name], device_type, found.device_count)
            )
    return found


def lenient_functions(module: ModuleType) -> frozenset[str]:
    """What of a `facade` answers for a device that does not exist, as if for the current one.

    Found out by asking; may initialise the device. What torch itself asks of an allocator is taken for such:
    it hands an index on as it is, and one that reads beyond its end ends the process.
    """
    torchs = {name: function for name, function in _of_torch("").items() if name in _OF_THE_ALLOCATOR}
    wrong = (-1, -7, module.device_count() + 5)
    state = getattr(module, "get_rng_state", lambda index: None)(0)
    given = {"set_rng_state": (state,)}
    found = frozenset(
        name
        for name in _INDEX_AT
        if hasattr(module, name)
        and (
            torchs.get(name) == getattr(module, name)
            or any(_answers(getattr(module, name), (*given.get(name, ()), index)) for index in wrong)
        )
    )
    if hasattr(module, "set_device"):
        module.set_device(0)
    return found


def _answers(function: _Function, given: Sequence[object]) -> bool:
    try:
        found = function(*given)
        if hasattr(found, "__enter__"):  # a block in which the device is current
            with cast("AbstractContextManager[object]", found):
                pass
    except Exception:  # as it should; of which type differs
        return False
    return True


def _strict(function: _Function, at: int, device_type: str, count: Callable[[], int]) -> _Function:
    def checked(*given: object) -> object:
        index = given[at]
        if not isinstance(index, int) or not 0 <= index < count():
            raise RuntimeError(f"There is no device {device_type}:{index}.")
        return function(*given)

    return checked


def _add_missing(found: ModuleType, spares: Mapping[str, _Function]) -> None:
    for name, function in spares.items():
        if not hasattr(found, name):
            setattr(found, name, function)


def statistics_source(module: ModuleType) -> str:
    """Who counts behind a `facade`."""
    ours = getattr(module, "memory_stats", None) is _accelerator_statistics
    return "torch.accelerator" if ours else module.__name__


def _fitting(function: object, arguments: int, indexed: bool) -> _Function | None:
    if not callable(function):
        return None
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # a C function that publishes none
        return function
    if any(one.kind is inspect.Parameter.VAR_POSITIONAL for one in parameters):
        return function
    by_position = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    taken = sum(one.kind in by_position for one in parameters)
    if taken >= arguments:
        return function
    return None if indexed else lambda *given: function(*given[:taken])


def _made_as_torchs_own(kind: object) -> bool:
    """Whether a vendor's stream or event takes the arguments of torch's own classes, not those of torch.cuda's.

    A subclass with a constructor of its own publishes what that takes.
    """
    if not isinstance(kind, type) or not issubclass(kind, (torch.Stream, torch.Event)):
        return False
    return kind.__new__ in (torch.Stream.__new__, torch.Event.__new__) and kind.__init__ is object.__init__


def _reshaped(own: object) -> dict[str, _Function]:
    """Statistics and properties of modules that have them in a form of their own."""
    found: dict[str, _Function] = {}
    if hasattr(own, "memory_stats"):
        found["memory_stats"] = lambda index: _flat(own.memory_stats(index))
    elif hasattr(own, "current_allocated_memory") and hasattr(own, "driver_allocated_memory"):  # mps
        found["memory_stats"] = lambda index: {
            statistics.KEYS["allocated"]: own.current_allocated_memory(),
            statistics.KEYS["reserved"]: own.driver_allocated_memory(),
        }
    if hasattr(own, "recommended_max_memory"):  # mps: no more than an estimate, and 0 or less for "unknown"
        found["get_device_properties"] = lambda index: SimpleNamespace(
            name=_mps_name(), total_memory=max(0, own.recommended_max_memory()) or None, is_integrated=True
        )
    return found


def _mps_name() -> str | None:
    read = getattr(torch.backends.mps, "get_name", None)  # not in every torch
    return str(read()) if read is not None and torch.backends.mps.is_available() else None


def _flat(raw: Mapping[str, object]) -> dict[str, int]:
    """Counters by torch's keys; mtia nests its own two."""
    nested = raw.get("dram")
    if isinstance(nested, dict):
        raw = {
            statistics.KEYS[field]: nested[key]
            for field, key in (("allocated", "allocated_bytes"), ("peak_allocated", "peak_bytes"))
            if key in nested
        }
    return {key: value for key, value in raw.items() if type(value) is int}


def served_by_torch(device_type: str) -> frozenset[str]:
    """What ``torch.accelerator``, ``torch.Stream`` and ``torch.Event`` really do for this device.

    Found out by asking each kind of thing once; may initialise the device.
    """
    shared = torch.accelerator
    if not _is_current(device_type):
        return frozenset()
    if not shared.is_available():
        return frozenset()
    found: set[str] = set()
    if _serves(shared.synchronize):
        found.add("synchronize")
    # One allocator stands behind all of these, or none.
    if hasattr(shared, "memory_stats") and _serves(lambda: shared.memory_stats(0)):
        found |= {"memory_stats", "empty_cache", "reset_peak_memory_stats"}
        if hasattr(shared, "get_memory_info") and _serves(lambda: shared.get_memory_info(0)):
            found.add("mem_get_info")
    if _serves(lambda: _try_streams(device_type)):
        found |= {"Stream", "stream", "current_stream", "set_stream"}
    if _serves(lambda: _try_events(device_type)):
        found.add("Event")
    return frozenset(found)


def _of_torch(device_type: str) -> dict[str, _Function]:
    """What torch has for every device, in the form of a vendor's module."""
    shared = torch.accelerator

    def stream(index: int, priority: int = 0) -> torch.Stream:
        return torch.Stream(device=torch.device(device_type, index), priority=priority)

    def event(timing: bool = False) -> torch.Event:
        return torch.Event(device=device_type, enable_timing=timing)

    given: dict[str, object] = {
        "is_available": shared.is_available,
        "device_count": shared.device_count,
        "current_device": getattr(shared, "current_device_index", None),
        "set_device": getattr(shared, "set_device_index", None),
        "device": getattr(shared, "device_index", None),
        "synchronize": shared.synchronize,
        "memory_stats": _accelerator_statistics,
        "empty_cache": getattr(shared, "empty_cache", None),
        "reset_peak_memory_stats": getattr(shared, "reset_peak_memory_stats", None),
        "mem_get_info": getattr(shared, "get_memory_info", None),
        "Stream": stream,
        "stream": _stream_made_current,
        "current_stream": getattr(shared, "current_stream", None),
        "set_stream": getattr(shared, "set_stream", None),
        "Event": event,
    }
    return {name: one for name, one in given.items() if callable(one)}


@contextmanager
def _stream_made_current(stream: torch.Stream) -> Iterator[None]:
    """A block in which a torch.Stream is current; stream and device are restored after it."""
    shared, index = torch.accelerator, stream.device.index
    before, device = shared.current_stream(index), shared.current_device_index()
    shared.set_stream(stream)
    try:
        yield
    finally:
        shared.set_stream(before)
        shared.set_device_index(device)


def _try_streams(device_type: str) -> None:
    """Raise RuntimeError unless a new torch.Stream is another one, and can be made current."""
    shared = torch.accelerator
    before = shared.current_stream(0)
    side = torch.Stream(device=torch.device(device_type, 0))
    with _stream_made_current(side):
        inside = shared.current_stream(0)
    if side == before or inside != side or shared.current_stream(0) != before:
        raise RuntimeError("torch's own streams do nothing here")


def _try_events(device_type: str) -> None:
    """Raise RuntimeError unless a torch.Event is done once it was waited for, and knows its device then."""
    event = torch.Event(device=device_type)
    torch.ones(1, device=torch.device(device_type, 0))
    event.record()
    event.synchronize()
    if event.query() is not True:
        raise RuntimeError("torch's own events do nothing here")


def _accelerator_statistics(index: int) -> dict[str, int]:
    return statistics.maintained(torch.accelerator.memory_stats(index), _MAINTAINED)


def _is_current(device_type: str) -> bool:
    try:
        current = torch.accelerator.current_accelerator()
    except RuntimeError:  # a renamed device without hooks: torch.accelerator knows nothing of it
        return False
    return current is not None and current.type == device_type


def _serves(function: _Function) -> bool:
    try:
        function()
    except (
        RuntimeError,
        AttributeError,
        TypeError,
    ):  # "not a DeviceAllocator", "doesn't support synchronizing"
        return False
    return True


def _for_single_device(found: ModuleType, indexed: bool) -> dict[str, _Function]:
    spares: dict[str, _Function] = {}
    if hasattr(found, "is_available"):
        spares["is_initialized"] = found.is_available
    if not indexed:
        spares |= {
            "current_device": lambda: 0,
            "set_device": lambda index: None,
            "device": lambda index: _Nothing(),
        }
    return spares


class _Nothing:
    """A context that does nothing: there is one device only."""

    def __enter__(self) -> None:
        return None

    def __exit__(self, *error: object) -> None:
        return None
