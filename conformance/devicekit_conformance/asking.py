"""How an engine asks a Device for each hook of the contract, and what it must hear when the hook is missing."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

from devicekit_conformance.frozen_contract import HOOKS, STATS_FIELDS, Missing

if TYPE_CHECKING:
    from devicekit.device import Device

_INNOCENT = RuntimeError("an error that is none of the backend's")


def _use_current(device: Device) -> object:
    with device.current():
        return None


def _tensor() -> object:
    import torch

    return torch.zeros(8, dtype=torch.uint8)


ASK: Mapping[str, Callable[[Device], object]] = {
    "current_index": lambda device: device.current_index(),
    "set_index": _use_current,
    "device_properties": lambda device: device.properties(),
    "synchronize": lambda device: device.synchronize(),
    "current_stream": lambda device: device.current_stream(),
    "create_stream": lambda device: device.create_stream(),
    "use_stream": lambda device: device.use_stream(object()),  # type: ignore[arg-type]  # never looked at
    "create_event": lambda device: device.create_event(),
    "is_capturing": lambda device: device.is_capturing(),
    "create_graph": lambda device: device.create_graph(),
    "empty_cache": lambda device: device.empty_cache(),
    "empty_host_cache": lambda device: device.empty_host_cache(),
    "collect_ipc": lambda device: device.collect_ipc(),
    "memory_stats": lambda device: device.memory_stats(),
    "memory_info": lambda device: device.memory_info(),
    "process_memory": lambda device: device.process_memory(),
    "host_memory_stats": lambda device: device.host_memory_stats(),
    "memory_snapshot": lambda device: device.memory_snapshot(),
    "reset_peak_memory_stats": lambda device: device.reset_peak_memory_stats(),
    "set_memory_fraction": lambda device: device.set_memory_fraction(1.0),
    "memory_pool": lambda device: device.memory_pool(),
    "classify_error": lambda device: device.classify_error(_INNOCENT),
    "pin_memory": lambda device: device.pin_memory(_tensor()),  # type: ignore[arg-type]
    "copies_overlap": lambda device: device.copies_overlap(),
    "manual_seed": lambda device: device.manual_seed(0),
    "get_rng_state": lambda device: device.get_rng_state(),
    "set_rng_state": lambda device: device.set_rng_state(_tensor()),  # type: ignore[arg-type]
    "collective_backend": lambda device: device.collective_backend(),
    "visible_devices_variable": lambda device: device.visible_devices_variable(),
    "is_bad_fork": lambda device: device.is_bad_fork(),
    "export_ipc": lambda device: device.export_ipc(_tensor()),  # type: ignore[arg-type]
    "import_ipc": lambda device: device.import_ipc(object()),
    "profiler_activity": lambda device: device.profiler_activity(),
    "record_memory_history": lambda device: device.record_memory_history(False),
}

# Hooks that return something, and whose result the host therefore promises to check. A classifier is asked inside
# handlers: what it says wrongly counts as nothing.
CHECKED = tuple(
    name
    for name, hook in HOOKS.items()
    if name in ASK and hook.returns != ("NoneType",) and name != "classify_error"
)
_SEQUENCES = (list, tuple, str, bytes)


def may_return(hook: str, value: object) -> bool:
    """Whether the contract allows the hook to return ``value``, as far as a host can be expected to look."""
    allowed = HOOKS[hook].returns
    if "*" in allowed:
        return value is not None
    if "list" in allowed and isinstance(value, _SEQUENCES):
        return True
    return type(value).__name__ in allowed


_RECORDS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "memory_stats": ("MemoryStats", STATS_FIELDS),
    "memory_info": ("MemoryInfo", ("free", "total", "source")),
    "host_memory_stats": ("HostMemoryStats", ("allocated", "reserved")),
    "device_properties": (
        "DeviceProperties",
        ("name", "total_memory", "uuid", "architecture", "compute_units", "unified_memory", "driver"),
    ),
}


def asked_through_hook(device: Device, hook: str) -> bool:
    """Whether asking for ``hook`` reaches the backend at all: one device without an index is never switched."""
    if hook not in ASK:
        return False
    if hook == "set_index":
        if not device.backend.manifest.indexed or not device.supports("current_index"):
            return False
        return device.supports("set_index") is False or device.current_index() != device.index
    return True


def fault_of_missing(device: Device, hook: str) -> str | None:
    """What is wrong with the host's answer for a hook that the backend lacks; ``None`` if it is right."""
    from devicekit.contract.errors import UnsupportedHook

    if device.supports(hook) is not False:
        return f"supports({hook!r}) is {device.supports(hook)!r}"
    kind = HOOKS[hook].missing
    try:
        answer = ASK[hook](device)
    except UnsupportedHook as error:
        if kind is not Missing.RAISE:
            return f"{hook} is {kind.value}, and its absence raised UnsupportedHook"
        # Switching devices needs two hooks, and the error names both.
        one_of = ("current_index", "set_index") if hook == "set_index" else (hook,)
        named = error.hook in one_of and error.backend == device.name and hook in str(error)
        return None if named else f"the UnsupportedHook for {hook} does not name backend and hook: {error}"
    except Exception as error:
        return f"asking for {hook} raised {type(error).__name__}: {error}"
    if kind is Missing.RAISE:
        return f"asking for {hook} returned {answer!r} instead of raising UnsupportedHook"
    if kind is Missing.DO_NOTHING_AND_SAY_SO:
        return _fault_of_release(hook, answer)
    return _fault_of_unknown(hook, answer)


def _fault_of_release(hook: str, answer: object) -> str | None:
    if hook == "reset_peak_memory_stats":
        return None if answer is False else f"{hook} returned {answer!r} instead of False"
    called, reason = getattr(answer, "called", None), getattr(answer, "reason", None)
    if called is not False or bool(answer):
        return f"{hook} returned {answer!r}, which says that something was called"
    return None if isinstance(reason, str) and hook in reason else f"{hook} gives no reason: {reason!r}"


def _fault_of_unknown(hook: str, answer: object) -> str | None:
    if hook not in _RECORDS:
        return None if answer is None else f"{hook} returned {answer!r} instead of None"
    name, fields = _RECORDS[hook]
    if type(answer).__name__ != name:
        return f"{hook} returned {answer!r} instead of a {name}"
    made_up = [field for field in fields if getattr(answer, field) is not None]
    return f"{hook} made up {', '.join(made_up)}" if made_up else None
