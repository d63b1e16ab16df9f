"""The capabilities a manifest may claim, and the hooks that each claim rests on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True, slots=True)
class Capability:
    """A claim that conformance checks by effect."""

    name: str
    sentence: str
    hooks: tuple[str, ...]  # never more in a later contract: a claim that was founded stays so
    since: str = "1.0"  # the contract version that introduced it


def _table(*rows: Capability) -> Mapping[str, Capability]:
    return MappingProxyType({row.name: row for row in rows})


CAPABILITIES: Mapping[str, Capability] = _table(
    Capability(
        "caching_allocator",
        "Freed memory stays reserved until the cache is emptied, and both are counted.",
        ("empty_cache", "memory_stats"),
    ),
    Capability(
        "peak_memory",
        "Peaks are tracked natively and can be reset.",
        ("memory_stats", "reset_peak_memory_stats"),
    ),
    Capability("driver_memory", "The driver's free and total bytes are known.", ("memory_info",)),
    Capability(
        "streams",
        "Work can be put on several streams of one device.",
        ("current_stream", "create_stream", "use_stream"),
    ),
    Capability("events", "Work can be marked, queried and waited for.", ("create_event",)),
    Capability("graphs", "Work can be captured and replayed.", ("create_graph", "is_capturing")),
    Capability("async_copies", "Copies from pinned memory overlap with computation.", ("copies_overlap",)),
    Capability("pinned_memory", "Host memory can be page-locked.", ("pin_memory",)),
    Capability("memory_fraction", "A process's share of a device can be limited.", ("set_memory_fraction",)),
    Capability("memory_pools", "Allocations can be kept in a private pool.", ("memory_pool",)),
    Capability("ipc", "Tensors can be shared between processes.", ("export_ipc", "import_ipc")),
    Capability("rng_state", "The random state can be read and restored.", ("get_rng_state", "set_rng_state")),
    Capability(
        "stream_control",
        "A stream can be made current for good, and handed to the vendor's own libraries.",
        ("set_current_stream", "default_stream", "native_handle"),
        since="1.1",
    ),
    Capability(
        "shared_graph_pools",
        "Captures can share one pool of memory.",
        ("graph_pool", "create_graph"),
        since="1.1",
    ),
    Capability(
        "host_registration",
        "Host memory that exists already can be page-locked.",
        ("register_host_memory", "unregister_host_memory", "is_pinned"),
        since="1.1",
    ),
    Capability(
        "event_sharing",
        "Another process can wait for an event.",
        ("create_event", "export_event", "import_event"),
        since="1.1",
    ),
    Capability(
        "tunable_allocator",
        "The allocator's settings can be read and changed.",
        ("allocator_settings", "set_allocator_setting"),
        since="1.1",
    ),
    Capability(
        "lazy_execution", "Work is only recorded until it is sent off.", ("submit_work",), since="1.1"
    ),
    Capability("unified_memory", "Device and host share one memory.", ("device_properties",)),
)
"""What a manifest may claim, by name."""
