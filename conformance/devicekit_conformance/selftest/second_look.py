"""Faults of a second look at the contract, after the model: one at a time, of other kinds than its operators.

Addresses: ``devicekit_conformance.selftest.second_look:NAME``. How many were caught before anything was repaired
for them stands in the kill matrix.
"""

from __future__ import annotations

import dataclasses
import threading
import time
from collections.abc import Callable, Mapping
from typing import Any

import torch

from devicekit.contract import AllocatorState, ErrorKind, MemoryStats
from devicekit.testing.streams import SimStream
from devicekit_conformance.selftest.building import Body, Call, faulty
from devicekit_conformance.selftest.honest import Honest, machine

__all__ = ["FAULTS"]


@dataclasses.dataclass(frozen=True)
class Made:
    """A faulty backend, and the hook that it is about."""

    hook: str
    make: Callable[[], type[Honest]]


def _one(hook: str, body: Body, **more: Body) -> Made:
    return Made(hook, lambda: faulty({hook: body, **more}))


def _record(hook: str, change: Callable[[Any, Call], Mapping[str, object]]) -> Made:
    def body(call: Call) -> object:
        found: Any = call.forward()
        try:
            return dataclasses.replace(found, **change(found, call))
        except TypeError:  # a number that is unknown
            return found

    return _one(hook, body)


def _changed(hook: str, **methods: Callable[..., Any]) -> Made:
    """Handles whose class has some methods replaced; each gets the honest one first."""

    def body(call: Call) -> object:
        made: Any = call.forward()
        kind = type(made)
        own = {name: _bound(getattr(kind, name), method) for name, method in methods.items()}
        made.__class__ = type(kind.__name__, (kind,), own)
        return made

    return _one(hook, body)


def _bound(honest: Any, method: Callable[..., Any]) -> Callable[..., Any]:
    return lambda self, *arguments: method(honest, self, *arguments)


def _only_created_streams(call: Call) -> None:
    machine().initialize()
    device = machine().device(call.arguments[0])
    tails = [one.tail for one in call.memory.get("streams", ())]
    device.clock.advance_to(max([device.clock.now(), *tails]))


def _swallows(call: Call) -> None:
    try:
        call.forward()
    except IndexError:
        pass
    except Exception as error:
        if "lost" not in repr(error).lower():
            raise


def _by_priority(call: Call) -> object:
    return call.memory.setdefault(str(call.arguments), call.forward())


def _high_on_the_first(call: Call) -> object:
    return call.honest(0 if call.arguments[1] < 0 else call.arguments[0], call.arguments[1])


class _Use:
    def __init__(self, stream: Any, only_first_device: bool, default_after: bool) -> None:
        self.stream, self.only_first, self.default = stream, only_first_device, default_after

    def __enter__(self) -> None:
        self.device, self.before = machine().index_of(), machine().current_stream(self.stream.device_index)
        machine().set_device(self.stream.device_index)
        machine().set_stream(self.stream)

    def __exit__(self, *rest: object) -> None:
        if not self.only_first or self.stream.device_index == 0:
            machine().set_stream(self.before)
        machine().set_device(0 if self.default else self.device)


def _once_recorded(honest: Any, self: Any, stream: Any = None) -> object:
    if getattr(self, "_marked", False):
        return None
    self._marked = True
    return honest(self, stream)


def _wall_clock(honest: Any, self: Any, end: Any) -> float:
    honest(self, end)
    return (getattr(end, "_wall", 0.0) - getattr(self, "_wall", 0.0)) * 1e3


def _walled(honest: Any, self: Any, stream: Any = None) -> object:
    self._wall = time.perf_counter()
    return honest(self, stream)


def _twice(honest: Any, self: Any) -> None:
    honest(self)
    honest(self)


def _small_caches_stay(call: Call) -> None:
    if machine().initialized:
        cached = sum(one.allocator.counters.current("reserved_bytes") for one in machine().devices)
        if cached > 1 << 30:
            call.forward()
        else:
            for device in machine().devices:
                device.synchronize()


def _main_thread_only(call: Call) -> object:
    return call.forward() if threading.current_thread() is threading.main_thread() else None


def _resets_peaks(call: Call) -> None:
    call.forward()
    for device in machine().devices:
        device.allocator.counters.reset_peaks()


def _to_default_stream(call: Call) -> None:
    call.forward()
    if machine().initialized:
        for device in machine().devices:
            machine().set_stream(device.default_stream)


def _stale_for_a_while(call: Call) -> object:
    now = time.monotonic()
    kept = call.memory.get(repr(call.arguments))
    if kept is None or now - kept[0] > 0.5:
        kept = call.memory[repr(call.arguments)] = (now, call.forward())
    return kept[1]


def _reusable_is_free(found: Any, call: Call) -> Mapping[str, object]:
    counters = machine().device(call.arguments[0]).allocator.counters
    return {"free": found.free + counters.current("reserved_bytes") - counters.current("allocated_bytes")}


def _active_segments(call: Call) -> object:
    found: Any = call.forward()
    return None if found is None else [one for one in found if one["active_size"]]


def _loses_ooms(call: Call) -> None:
    call.forward()
    if machine().initialized:
        counters = machine().device(call.arguments[0]).allocator.counters
        counters.num_ooms = counters.num_alloc_retries = 0


def _tightens(call: Call) -> None:
    least = min(call.memory.get("least", 1.0), call.arguments[1])
    call.honest(call.arguments[0], least)
    call.memory["least"] = least


def _refuses_one(call: Call) -> None:
    if call.arguments[1] == 1.0:
        raise ValueError("a fraction is below 1")
    call.forward()


def _by_class_name(call: Call) -> object:
    return ErrorKind.OUT_OF_MEMORY if "Memory" in type(call.arguments[0]).__name__ else call.forward()


def _first_oom_only(call: Call) -> object:
    kind = call.forward()
    if kind is ErrorKind.OUT_OF_MEMORY:
        call.memory["seen"] = call.memory.get("seen", 0) + 1
        return kind if call.memory["seen"] == 1 else None
    return kind


def _forgets_arguments(call: Call) -> object:
    kind = call.forward()
    call.arguments[0].args = ()
    return kind


def _first_mebibyte(call: Call) -> object:
    found: Any = call.forward()
    if found.nbytes > 1 << 20 and found.data_ptr() != call.arguments[0].data_ptr():
        found.reshape(-1).view(torch.uint8)[1 << 20 :] = 0
    return found


def _bools_are_bytes(call: Call) -> object:
    tensor = call.arguments[0]
    return call.honest(tensor.to(torch.uint8) if tensor.dtype is torch.bool else tensor)


def _seeds_python(call: Call) -> object:
    import random

    random.seed(call.arguments[1])
    return call.forward()


def _one_further(call: Call) -> None:
    call.forward()
    torch.rand(1, device=torch.device("sim", call.arguments[0]))


def _last_allocated(call: Call) -> int:
    held = [one.allocator.counters.current("allocated_bytes") for one in machine().devices]
    return held.index(max(held)) if any(held) else int(call.forward())


def _fewer_after_oom(call: Call) -> int:
    lost = any(one.allocator.counters.num_ooms for one in machine().devices)
    return int(call.forward()) - int(lost)


def _always_ok(call: Call) -> object:
    found: Any = call.forward()
    return found if found.state is AllocatorState.OK else MemoryStats(AllocatorState.OK, found.source)


def _ordered_locks() -> type[Honest]:
    first, second = threading.Lock(), threading.Lock()

    def there(call: Call) -> object:
        with first:
            time.sleep(0.001)
            with second:
                return call.forward()

    def back(call: Call) -> object:
        with second:
            time.sleep(0.001)
            with first:
                return call.forward()

    return faulty({"memory_stats": there, "memory_info": back})


def _kept_current(call: Call) -> object:
    found = call.forward()
    if machine().initialized and not machine().in_bad_fork():
        machine().set_stream(machine().device(call.arguments[0]).default_stream)
    return found


def _copy_before_work(call: Call) -> object:
    return call.honest(call.arguments[0].clone())


def _shares_pools(call: Call) -> object:
    return call.memory.setdefault("pool", call.forward())


def _swallowing_use(honest: Any, self: Any) -> Any:
    inner = honest(self)

    class Use:
        def __enter__(self) -> None:
            inner.__enter__()

        def __exit__(self, kind: Any, error: Any, trace: Any) -> bool:
            inner.__exit__(None, None, None)
            return True

    return Use()


def _side_streams_done(honest: Any, self: Any) -> bool:
    stream = self._stream
    return bool(honest(self)) or (isinstance(stream, SimStream) and stream.stream_id != 0)


def _pending_is_done(honest: Any, self: Any) -> bool:
    return bool(honest(self)) or threading.current_thread() is not threading.main_thread()


def _wrong_swap(found: Any, call: Call) -> Mapping[str, object]:
    return {"free": found.total, "total": found.free} if call.arguments[0] else {}


def _kilobytes_on_the_second(found: Any, call: Call) -> Mapping[str, object]:
    return {"total_memory": found.total_memory >> 20} if call.arguments[0] else {}


def _parents(call: Call) -> object:
    import os

    return [dataclasses.replace(one, pid=os.getppid()) for one in call.forward()]


def _graph_capture_stays(call: Call) -> bool:
    call.memory["seen"] = call.memory.get("seen", False) or call.forward()
    return bool(call.memory["seen"])


def _any_device_captures(call: Call) -> bool:
    return any(device.capturing is not None for device in machine().devices)


def _capped(found: Any, call: Call) -> Mapping[str, object]:
    return {name: min(getattr(found, name), 2 << 30) for name in ("allocated", "active", "requested")}


FAULTS: Mapping[str, Made] = {
    "synchronize_knows_no_stream": _one("synchronize", _only_created_streams),
    "synchronize_hides_a_lost_device": _one("synchronize", _swallows),
    "synchronize_in_the_main_thread_only": _one("synchronize", _main_thread_only),
    "streams_are_one_for_a_priority": _one("create_stream", _by_priority),
    "streams_of_high_priority_are_elsewhere": _one("create_stream", _high_on_the_first),
    "use_stream_restores_the_first_device_only": _one(
        "use_stream", lambda call: _Use(call.arguments[0], True, False)
    ),
    "use_stream_goes_to_the_first_device": _one(
        "use_stream", lambda call: _Use(call.arguments[0], False, True)
    ),
    "a_stream_is_done_in_other_threads": _changed("create_stream", query=_pending_is_done),
    "an_event_is_done_on_side_streams": _changed("create_event", query=_side_streams_done),
    "an_event_is_recorded_once": _changed("create_event", record=_once_recorded),
    "elapsed_time_is_the_hosts": _changed("create_event", elapsed_time=_wall_clock, record=_walled),
    "elapsed_time_ends_at_100_ms": _changed("create_event", elapsed_time=lambda h, s, e: min(h(s, e), 100.0)),
    "capture_is_never_over": _one("is_capturing", _graph_capture_stays),
    "any_device_captures": _one("is_capturing", _any_device_captures),
    "a_graph_runs_twice": _changed("create_graph", replay=_twice),
    "a_graph_keeps_its_memory": _changed("create_graph", reset=lambda honest, self: None),
    "small_caches_stay": _one("empty_cache", _small_caches_stay),
    "other_threads_empty_nothing": _one("empty_cache", _main_thread_only),
    "emptying_resets_peaks": _one("empty_cache", _resets_peaks),
    "emptying_leaves_the_stream": _one("empty_cache", _to_default_stream),
    "statistics_end_at_2_gib": _record("memory_stats", _capped),
    "requested_is_rounded": _record("memory_stats", lambda found, call: {"requested": found.allocated}),
    "retries_are_ooms": _record(
        "memory_stats", lambda found, call: {"num_ooms": found.num_alloc_retries + 1}
    ),
    "the_peak_of_reserved_is_reserved": _record(
        "memory_stats", lambda found, call: {"peak_reserved": found.reserved}
    ),
    "statistics_are_always_ok": _one("memory_stats", _always_ok),
    "raw_has_floats": _record(
        "memory_stats", lambda found, call: {"raw": {k: v / 2 for k, v in found.raw.items()}}
    ),
    "free_counts_the_cache": _record("memory_info", _reusable_is_free),
    "free_keeps_a_gibibyte": _record(
        "memory_info", lambda found, call: {"free": max(0, found.free - (1 << 30))}
    ),
    "the_second_device_is_swapped": _record("memory_info", _wrong_swap),
    "free_is_half_a_second_old": _one("memory_info", _stale_for_a_while),
    "statistics_are_half_a_second_old": _one("memory_stats", _stale_for_a_while),
    "the_parent_is_listed": _one("process_memory", _parents),
    "processes_in_kibibytes": _one(
        "process_memory",
        lambda call: [dataclasses.replace(one, used=one.used // 1024) for one in call.forward()],
    ),
    "host_reserved_is_allocated": _record(
        "host_memory_stats", lambda found, call: {"allocated": found.reserved}
    ),
    "cached_segments_are_hidden": _one("memory_snapshot", _active_segments),
    "a_snapshot_is_a_generator": _one("memory_snapshot", lambda call: (one for one in call.forward() or ())),
    "resetting_forgets_ooms": _one("reset_peak_memory_stats", _loses_ooms),
    "a_limit_only_tightens": _one("set_memory_fraction", _tightens),
    "a_limit_of_all_is_refused": _one("set_memory_fraction", _refuses_one),
    "devices_share_a_pool": _one("memory_pool", _shares_pools),
    "a_pool_swallows": _changed("memory_pool", use=_swallowing_use),
    "errors_are_known_by_their_name": _one("classify_error", _by_class_name),
    "the_first_is_recognised": _one("classify_error", _first_oom_only),
    "errors_lose_their_arguments": _one("classify_error", _forgets_arguments),
    "a_mebibyte_is_pinned": _one("pin_memory", _first_mebibyte),
    "bools_are_pinned_as_bytes": _one("pin_memory", _bools_are_bytes),
    "only_the_first_device_overlaps": _one("copies_overlap", lambda call: call.arguments[0] == 0),
    "seeding_seeds_python": _one("manual_seed", _seeds_python),
    "restoring_goes_one_further": _one("set_rng_state", _one_further),
    "the_fullest_device_is_current": _one("current_index", _last_allocated),
    "a_device_is_lost_with_memory": _one("device_count", _fewer_after_oom),
    "choosing_moves_the_stream": _one("set_index", _kept_current),
    "total_memory_of_the_second_in_mib": _record("device_properties", _kilobytes_on_the_second),
    "exporting_copies": _one("export_ipc", _copy_before_work),
    "importing_flattens": _one("import_ipc", lambda call: call.forward().reshape(-1)),
    "importing_copies": _one("import_ipc", lambda call: call.forward().clone()),
    "forks_are_never_bad": _one("is_bad_fork", lambda call: False),
    "threads_are_bad_forks": _one(
        "is_bad_fork", lambda call: threading.current_thread() is not threading.main_thread()
    ),
    "locks_in_two_orders": Made("memory_stats", _ordered_locks),
    "the_collective_backend_shouts": _one(
        "collective_backend", lambda call: call.forward().upper() if call.number % 2 == 0 else call.forward()
    ),
}
"""What makes each, by name."""


def __getattr__(name: str) -> type[Honest]:
    if name not in FAULTS:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return FAULTS[name].make()
