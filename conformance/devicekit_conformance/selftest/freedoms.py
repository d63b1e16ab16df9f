"""Honest backends that are unusual, by the freedoms that the contract leaves: alone, in pairs, and with less.

``devicekit_conformance.selftest.freedoms:NAME`` has one freedom, ``A__B`` has two, and ``without_HOOK`` lacks a
hook. None may be refused.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import time
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import torch

from devicekit.contract import AllocatorState, DeviceProperties, MemoryInfo, MemoryStats
from devicekit.contract.hooks import HOOKS, hookimpl
from devicekit.contract.records import Telemetry
from devicekit.contract.spec import HookKind
from devicekit.testing import GIB, MIB
from devicekit.testing.errors import WrongDevice
from devicekit_conformance.selftest.building import FIELDS, Body, Call, takes_index
from devicekit_conformance.selftest.free_objects import (
    exact_types,
    lock_pages,
    numbered,
    on_locked_pages,
    once,
    strict_graph,
    ticking,
    unlock_pages,
    watch,
)
from devicekit_conformance.selftest.honest import Honest, machine
from devicekit_conformance.selftest.unusual import Freedom, build

__all__ = ["FREEDOMS", "Freedom", "honest_names"]

_PAGE = 64 * MIB


def _up(value: int | None) -> int | None:
    return None if value is None else -(-value // _PAGE) * _PAGE


def _in_pages(call: Call) -> object:
    found = call.forward()
    names = [name for name in FIELDS["memory_stats"] if not name.startswith("num_")]
    return dataclasses.replace(found, **{name: _up(getattr(found, name)) for name in names})


def _coarse_peaks(call: Call) -> object:
    found = call.forward()
    names = [name for name in FIELDS["memory_stats"] if name.startswith("peak_")]
    return dataclasses.replace(found, **{name: _up(getattr(found, name)) for name in names})


def _replaced(**values: object) -> Body:
    return lambda call: dataclasses.replace(call.forward(), **values)


def _slow(call: Call) -> object:
    time.sleep(0.05)
    return call.forward()


def _others(call: Call) -> object:
    """Somebody else takes and gives memory back between calls."""
    held = call.memory.pop("other", None)  # in one go: another thread may be here too
    if held is not None:
        held.release()
    elif call.number % 2:
        call.memory["other"] = machine().other_process(64 * MIB)
    return call.forward()


_HEAD = (7, 1, 0, 0)  # of a random state: the vendor's own version of it


def _with_head(call: Call) -> object:
    state: Any = call.forward()
    return torch.cat([torch.tensor(_HEAD, dtype=torch.uint8), state])


def _without_head(call: Call) -> object:
    index, state = call.arguments
    if tuple(state[: len(_HEAD)].tolist()) != _HEAD:
        raise ValueError("this is no state of this device's generator")
    return call.honest(index, state[len(_HEAD) :].clone())


def _in_a_ring(call: Call) -> object:
    """As the pools of torch and its extensions do: streams are made once, and handed out in turn."""
    index, priority = call.arguments
    ring = call.memory.setdefault(f"{index} {priority < 0}", [])
    if len(ring) < 8:
        ring.append(call.forward())
        return ring[-1]
    ring.append(ring.pop(0))
    return ring[-1]


def _first_time(call: Call) -> object:
    if not call.memory:
        import sqlite3

        call.memory["library"] = sqlite3  # whatever a vendor's library is
    return call.forward()


def _nothing_of(call: Call, unknown: object) -> object:
    call.forward()  # which refuses a device that does not exist
    return unknown


def _unknown_where_absent(unknown: object) -> Body:
    def body(call: Call) -> object:
        return call.forward() if call.arguments[0] in range(len(machine().devices)) else unknown

    return body


class _VendorsOwn(Exception):
    """None of torch's and none of Python's."""


def _raising_its_own(call: Call) -> object:
    try:
        return call.forward()
    except WrongDevice as error:
        raise _VendorsOwn(f"status 0x17: {error}") from None


def _clamped(lowest: int, highest: int) -> dict[str, Body]:
    """Streams of these priorities."""

    def create(call: Call) -> object:
        index, priority = call.arguments
        made: Any = call.honest(index, 0)
        made.priority = max(highest, min(priority, lowest))
        return made

    return {"priority_range": lambda call: (lowest, highest), "create_stream": create}


def _in_its_own_form(call: Call) -> object:
    found: Any = call.forward()
    kept = ({f"n_{key}": str(value) for key, value in one.items()} for one in found or ())
    return None if found is None else tuple(map(MappingProxyType, kept))


def _fixed_once_started(call: Call) -> object:
    found: Any = call.forward()
    return tuple(dataclasses.replace(one, changeable=not machine().initialized) for one in found or ())


def _refused_once_started(call: Call) -> object:
    if machine().initialized:
        raise ValueError(f"{call.arguments[0]} is fixed since the allocator started")
    return call.forward()


_BY_TYPE = "cpu:gloo,sim:gloo"


def _prefetch_pages(self: Any, index: int, size: int) -> None:
    raise NotImplementedError("nobody may call what this contract does not know")


def _create_event(
    self: Any, index: int, timing: bool, interprocess: bool = False, blocking: bool = False
) -> object:
    return Honest.create_event(self, index, timing, interprocess)


def _survive() -> None:
    def forked() -> None:
        machine()._owner = os.getpid()

    os.register_at_fork(after_in_child=forked)


def _pages(size: int) -> dict[str, int]:
    names = ("rounding", "small_limit", "small_segment", "large_limit", "large_segment", "segment_rounding")
    return dict.fromkeys(names, size)


FREEDOMS: Mapping[str, Freedom] = {
    "pages_of_64_mib": Freedom("The driver hands out 64 MiB at least.", config=_pages(_PAGE)),
    "pages_of_2_mib": Freedom("The driver hands out 2 MiB at least.", config=_pages(2 * MIB)),
    "counts_in_pages": Freedom("Sizes are counted in 64 MiB.", bodies={"memory_stats": _in_pages}),
    "exactly_asked_for": Freedom(
        "Sizes are counted in 64 MiB, but for what callers asked for.",
        bodies={
            "memory_stats": lambda call: dataclasses.replace(
                _in_pages(call),
                requested=call.forward().requested,  # type: ignore[type-var]  # a record
            )
        },
    ),
    "coarse_peaks": Freedom("Peaks are known to 64 MiB.", bodies={"memory_stats": _coarse_peaks}),
    "unknown_total": Freedom(
        "Nobody says how much there is.",
        bodies={"memory_info": _replaced(total=None), "device_properties": _replaced(total_memory=None)},
        denied=frozenset({"driver_memory"}),
    ),
    "unknown_free": Freedom(
        "The driver says nothing.",
        bodies={"memory_info": _replaced(free=None, total=None, source=None)},
        denied=frozenset({"driver_memory"}),
    ),
    "unknown_counters": Freedom(
        "Only what is allocated and reserved is counted.",
        bodies={
            "memory_stats": _replaced(
                **{name: None for name in FIELDS["memory_stats"] if name not in ("allocated", "reserved")},
                raw={},
            )
        },
        without=frozenset({"reset_peak_memory_stats"}),
        denied=frozenset({"peak_memory"}),
    ),
    "no_statistics": Freedom(
        "The allocator does not count.",
        bodies={"memory_stats": lambda call: MemoryStats(AllocatorState.UNSUPPORTED)},
        without=frozenset({"reset_peak_memory_stats"}),
        denied=frozenset({"peak_memory", "caching_allocator"}),
    ),
    "own_random_state": Freedom(
        "A random state has a form of the backend's own.",
        bodies={"get_rng_state": _with_head, "set_rng_state": _without_head},
    ),
    "streams_in_a_ring": Freedom(
        "There are eight streams, handed out in turn.", bodies={"create_stream": _in_a_ring}
    ),
    "settings_fixed_at_start": Freedom(
        "Settings can be changed until the allocator starts.",
        bodies={"allocator_settings": _fixed_once_started, "set_allocator_setting": _refused_once_started},
    ),
    "no_cache": Freedom("Memory goes back when it is freed.", config={"caching": False}),
    "synchronous": Freedom("Nothing is ever pending.", config={"blocking_launches": True}),
    "slow_hooks": Freedom("Each hook takes 50 ms.", bodies=dict.fromkeys(HOOKS, _slow)),
    "slow_driver": Freedom(
        "Taking memory from the driver is slow.",
        config={"driver_alloc_seconds": 5e-3, "driver_free_seconds": 3e-3},
    ),
    "counts_late": Freedom(
        "What was taken or given back shows 60 ms later.", config={"driver_counts_after": 0.06}
    ),
    "unified": Freedom("Host and devices share one memory.", config={"unified_memory": True}),
    "shared_with_others": Freedom(
        "Other processes take memory and give it back.",
        config={"unified_memory": True},
        bodies={"memory_info": _others, "process_memory": _others},
    ),
    "one_device": Freedom("There is one device.", config={"device_count": 1}),
    "eight_devices": Freedom("There are eight devices.", config={"device_count": 8}),
    "small": Freedom("The device has 1 GiB.", config={"capacity": GIB}),
    "tiny": Freedom("The device has 256 MiB.", config={"capacity": 256 * MIB}),
    "survives_fork": Freedom("The device works in forked children.", arrange=_survive),
    "gone_in_bad_forks": Freedom(
        "In a child that cannot use the device there is none.",
        bodies={
            "is_available": lambda call: call.forward() and not machine().in_bad_fork(),
            "device_count": lambda call: 0 if machine().in_bad_fork() else call.forward(),
        },
    ),
    "events_without_streams": Freedom(
        "There are events and one stream.",
        without=frozenset({"current_stream", "create_stream", "use_stream"}),
        denied=frozenset({"streams"}),
    ),
    "streams_without_events": Freedom(
        "There are streams and no events.", without=frozenset({"create_event"}), denied=frozenset({"events"})
    ),
    "tuples": Freedom(
        "Lists are tuples.",
        bodies={
            "process_memory": lambda call: tuple(call.forward()),
            "memory_snapshot": lambda call: None if (found := call.forward()) is None else tuple(found),
        },
    ),
    "sees_nothing": Freedom(
        "Neither processes nor segments can be seen.",
        bodies={"process_memory": lambda call: None, "memory_snapshot": lambda call: None},
    ),
    "lazy": Freedom("A library is loaded by the first call.", bodies=dict.fromkeys(HOOKS, _first_time)),
    "asking_initialises": Freedom(
        "torch's own functions initialise the device.", config={"asking_initialises": True}
    ),
    "says_little": Freedom(
        "The vendor says nothing of its device.",
        bodies={
            "device_properties": lambda call: _nothing_of(call, DeviceProperties()),
            "telemetry": lambda call: _nothing_of(call, Telemetry()),
            "supported_dtypes": lambda call: None,
            "priority_range": lambda call: None,
            "allocator_settings": lambda call: None,
            "profiler_activity": lambda call: None,
        },
        denied=frozenset({"unified_memory"}),
    ),
    "absent_devices_are_unknown": Freedom(
        "Of a device that does not exist nothing is known.",
        bodies={
            "memory_stats": _unknown_where_absent(MemoryStats()),
            "memory_info": _unknown_where_absent(MemoryInfo()),
            "process_memory": _unknown_where_absent(None),
            "memory_snapshot": _unknown_where_absent(None),
            "device_properties": _unknown_where_absent(DeviceProperties()),
            "telemetry": _unknown_where_absent(Telemetry()),
        },
    ),
    "errors_of_its_own": Freedom(
        "A device that does not exist is refused in the vendor's own words.",
        bodies=dict.fromkeys((name for name in HOOKS if takes_index(name)), _raising_its_own),
    ),
    "many_priorities": Freedom("Priorities go from 2 to -3.", bodies=_clamped(2, -3)),
    "one_priority": Freedom("All streams are alike.", bodies=_clamped(0, 0)),
    "handles_of_64_bits": Freedom(
        "Pointers use all their bits.", bodies={"native_handle": lambda call: call.forward() | 1 << 63}
    ),
    "not_its_own_peer": Freedom(
        "A device is no peer of its own.",
        bodies={"can_access_peer": lambda call: call.forward() and call.arguments[0] != call.arguments[1]},
    ),
    "snapshots_of_its_own_form": Freedom(
        "A snapshot has words of the vendor's own.", bodies={"memory_snapshot": _in_its_own_form}
    ),
    "one_import_a_handle": Freedom(
        "A handle is good for one import.", bodies={"export_ipc": numbered, "import_ipc": once}
    ),
    "collectives_by_device_type": Freedom(
        "Each type of device has a collective backend of its own.",
        bodies={"collective_backend": lambda call: _BY_TYPE},
        manifest={"collective_backend": _BY_TYPE},
    ),
    "half_taken_back": Freedom(
        "The vendor's software here lacks half of what the manifest speaks of.",
        taken_back=frozenset(
            {"collect_ipc", "create_graph", "create_stream", "export_ipc", "memory_stats", "submit_work"}
        ),
    ),
    "of_a_newer_contract": Freedom(
        "It has a hook and an argument that this contract does not know.",
        members={"prefetch_pages": hookimpl(_prefetch_pages), "create_event": hookimpl(_create_event)},
    ),
    "time_in_steps": Freedom("Events are timed in steps of 16 ms.", bodies={"create_event": ticking}),
    "graphs_of_one_capture": Freedom(
        "A graph captures when it is empty, and else only resets or replays.",
        bodies={"create_graph": strict_graph},
    ),
    "whole_pages_are_locked": Freedom(
        "Registering locks the pages on which memory is, for nobody else to lock.",
        bodies={
            "register_host_memory": lock_pages,
            "unregister_host_memory": unlock_pages,
            "is_pinned": on_locked_pages,
        },
    ),
    "watched_from_the_start": Freedom(
        "Initialising starts a thread, opens a file, and takes memory.", arrange=watch
    ),
    "declared_types": Freedom(
        "Arguments are of the types that are declared.", bodies=dict.fromkeys(HOOKS, exact_types)
    ),
    "required_only": Freedom(
        "Only what is required is implemented.",
        without=frozenset(n for n, spec in HOOKS.items() if spec.kind is not HookKind.REQUIRED),
    ),
}


def honest_names() -> tuple[str, ...]:
    """Every derived honest backend."""
    single = list(FREEDOMS)
    double = [
        f"{one}__{other}" for one, other in itertools.combinations(single, 2) if _can_be_one(one, other)
    ]
    optional = [f"without_{name}" for name, spec in HOOKS.items() if spec.kind is not HookKind.REQUIRED]
    return (*single, *optional, *double)


def _can_be_one(one: str, other: str) -> bool:
    first, second = FREEDOMS[one], FREEDOMS[other]
    answers = first.bodies.keys() | first.members.keys()
    others = second.bodies.keys() | second.members.keys()
    apart = first.config.keys().isdisjoint(second.config) and answers.isdisjoint(others)
    return apart and first.without.isdisjoint(others) and second.without.isdisjoint(answers)


def __getattr__(name: str) -> type[Any]:
    parts = name.split("__")
    if name.startswith("__") or not all(part in FREEDOMS or part.startswith("without_") for part in parts):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return build([_freedom(part) for part in parts])


def _freedom(name: str) -> Freedom:
    if name.startswith("without_"):
        return Freedom("", without=frozenset({name.removeprefix("without_")}))
    return FREEDOMS[name]
