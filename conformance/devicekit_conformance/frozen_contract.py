"""The suite's own copy of device contract 1.0, written down once and never read from the host.

A host that answers a missing hook wrongly would agree with its own table; it does not agree with this one.
"""

from __future__ import annotations

import enum
import functools
import inspect
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from packaging.specifiers import SpecifierSet

CONTRACT = "1.0"


class Missing(enum.Enum):
    """What a host must do when a backend lacks a hook."""

    REFUSE_BACKEND = "required"
    RAISE = "ordering"
    DO_NOTHING_AND_SAY_SO = "releasing"
    ANSWER_UNKNOWN = "observing"


@dataclass(frozen=True)
class FrozenHook:
    """One hook: its parameters, the exact types it may return, and what its absence means."""

    name: str
    missing: Missing
    parameters: tuple[str, ...]
    returns: tuple[str, ...]  # exact type names; "*" where any object of the vendor's will do

    @property
    def signature(self) -> str:
        return f"{self.name}({', '.join(self.parameters)})"

    @property
    def names_a_device(self) -> bool:
        """Whether it is told which device it is about."""
        return "index" in self.parameters or "stream" in self.parameters

    @property
    def refuses(self) -> bool:
        """Whether it must raise for a device that does not exist."""
        return "index" in self.parameters and self.name not in _ANY_INDEX

    @property
    def creates(self) -> bool:
        """Whether what it returns is new each time."""
        return "*" in self.returns or self.name in ("pin_memory", "import_ipc")

    @property
    def initialises(self) -> bool:
        """Whether it may initialise a device that nothing has used. Newer hooks say so in their own words."""
        named = self.name in ("device_properties", "memory_info", "synchronize")
        return named or self.missing is Missing.RAISE or _may_initialise(self.name)

    @property
    def quiet(self) -> bool:
        """Whether a call that asks for nothing, as to stop what was not started, initialises no device."""
        return not self.initialises or self.name in _NOTHING_TO_STOP or _says_nothing_starts(self.name)

    @property
    def sees_no_parent(self) -> bool:
        """Whether it knows nothing in a forked child that cannot use the device."""
        return self.name in _OF_THE_ALLOCATOR or _says_nothing_is_seen(self.name)

    @property
    def only_looks(self) -> bool:
        """Whether it must not wait, allocate, empty or reset anything."""
        return self.missing is Missing.ANSWER_UNKNOWN or self.name in (
            "is_available", "device_count", "current_index", "set_index", "current_stream"
        )  # fmt: skip

    @property
    def harmless(self) -> bool:
        """Whether calling it with nothing but an index changes no state that an engine relies on."""
        return self.parameters in ((), ("index",)) and self.name not in _CREATING


# These never raise, make what belongs to no device yet, or are of the whole process or alike on some vendors.
_ANY_INDEX = frozenset({
    "is_capturing", "copies_overlap", "create_event", "record_memory_history", "graph_pool", "priority_range",
    "submit_work", "supported_dtypes",
})  # fmt: skip
_NOTHING_TO_STOP = frozenset({"record_memory_history"})
_OF_THE_ALLOCATOR = frozenset({"memory_stats", "host_memory_stats", "memory_snapshot"})
_REQUIRED, _ORDERING = Missing.REFUSE_BACKEND, Missing.RAISE
_RELEASING, _OBSERVING = Missing.DO_NOTHING_AND_SAY_SO, Missing.ANSWER_UNKNOWN
_CREATING = frozenset({"set_index", "create_graph", "memory_pool"})

_ROWS: tuple[tuple[str, Missing, tuple[str, ...], tuple[str, ...]], ...] = (
    ("is_available", _REQUIRED, (), ("bool",)),
    ("device_count", _REQUIRED, (), ("int",)),
    ("current_index", _ORDERING, (), ("int",)),
    ("set_index", _ORDERING, ("index",), ("NoneType",)),
    ("device_properties", _OBSERVING, ("index",), ("DeviceProperties",)),
    ("synchronize", _REQUIRED, ("index",), ("NoneType",)),
    ("current_stream", _ORDERING, ("index",), ("*",)),
    ("create_stream", _ORDERING, ("index", "priority"), ("*",)),
    ("use_stream", _ORDERING, ("stream",), ("*",)),
    ("create_event", _ORDERING, ("index", "timing"), ("*",)),
    ("is_capturing", _OBSERVING, ("index",), ("bool",)),
    ("create_graph", _ORDERING, ("index",), ("*",)),
    ("empty_cache", _RELEASING, (), ("NoneType",)),
    ("empty_host_cache", _RELEASING, (), ("NoneType",)),
    ("collect_ipc", _RELEASING, (), ("NoneType",)),
    ("memory_stats", _OBSERVING, ("index",), ("MemoryStats",)),
    ("memory_info", _OBSERVING, ("index",), ("MemoryInfo",)),
    ("process_memory", _OBSERVING, ("index",), ("list", "tuple", "NoneType")),
    ("host_memory_stats", _OBSERVING, (), ("HostMemoryStats",)),
    ("memory_snapshot", _OBSERVING, ("index",), ("list", "tuple", "NoneType")),
    ("reset_peak_memory_stats", _RELEASING, ("index",), ("NoneType",)),
    ("set_memory_fraction", _ORDERING, ("index", "fraction"), ("NoneType",)),
    ("memory_pool", _ORDERING, ("index",), ("*",)),
    ("classify_error", _OBSERVING, ("error",), ("ErrorKind", "NoneType")),
    ("pin_memory", _ORDERING, ("tensor",), ("Tensor",)),
    ("copies_overlap", _OBSERVING, ("index",), ("bool",)),
    ("manual_seed", _ORDERING, ("index", "seed"), ("NoneType",)),
    ("get_rng_state", _ORDERING, ("index",), ("Tensor",)),
    ("set_rng_state", _ORDERING, ("index", "state"), ("NoneType",)),
    ("collective_backend", _OBSERVING, (), ("str",)),
    ("visible_devices_variable", _OBSERVING, (), ("str", "NoneType")),
    ("is_bad_fork", _OBSERVING, (), ("bool",)),
    ("export_ipc", _ORDERING, ("tensor",), ("*",)),
    ("import_ipc", _ORDERING, ("handle",), ("Tensor",)),
    ("profiler_activity", _OBSERVING, (), ("ProfilerActivity", "_ProfilerActivity", "NoneType")),
    ("record_memory_history", _ORDERING, ("index", "enabled"), ("NoneType",)),
)

HOOKS: Mapping[str, FrozenHook] = MappingProxyType({row[0]: FrozenHook(*row) for row in _ROWS})

_PROFILES = {
    "Presence": "core", "Selection": "core", "Failure": "core", "Random": "core", "Tools": "core",
    "Ordering": "streams", "Releasing": "memory", "Observing": "memory", "Limits and pools": "memory",
    "Host side": "host", "Processes": "processes",
}  # fmt: skip
_ELSEWHERE = {"synchronize": "core", "empty_host_cache": "host", "host_memory_stats": "host",
              "collect_ipc": "processes", "record_memory_history": "memory"}  # fmt: skip


def hook(name: str) -> FrozenHook:
    """One hook; of one that this copy does not know yet, what the host's contract declares."""
    if name in HOOKS:
        return HOOKS[name]
    from devicekit.contract.hooks import HOOKS as DECLARED

    spec = DECLARED[name]
    return FrozenHook(name, Missing(spec.kind.value), spec.parameters, _types_of(spec.returns))


def asking_nothing(name: str, given: int, parameters: Sequence[str]) -> list[object]:
    """What a hook is given for those of its ``parameters`` after the first ``given``: it asks for nothing."""
    nothing = _nothing_asked(name)
    return [nothing[one] for one in parameters[given:]]


@functools.cache
def _nothing_asked(name: str) -> Mapping[str, object]:
    from devicekit.contract.hooks import BackendSpec

    declared = inspect.signature(getattr(BackendSpec, name)).parameters
    return {one: False if declared[one].annotation == "bool" else None for one in declared}


def is_newer(name: str) -> bool:
    """Whether the host's contract has a hook of that name that this copy does not."""
    from devicekit.contract.hooks import HOOKS as DECLARED

    return name in DECLARED and name not in HOOKS


def _may_initialise(name: str) -> bool:
    from devicekit.contract.hooks import HOOKS as DECLARED

    if not is_newer(name):
        return False
    works = Missing(DECLARED[name].kind.value) is Missing.RAISE
    return (
        "Initialises nothing" not in DECLARED[name].doc if works else "May initialise" in DECLARED[name].doc
    )


def _says_nothing_starts(name: str) -> bool:
    return is_newer(name) and "initialises nothing" in _declared_words(name)


def _says_nothing_is_seen(name: str) -> bool:
    return is_newer(name) and "forked child that cannot use the device" in _declared_words(name)


def _declared_words(name: str) -> str:
    from devicekit.contract.hooks import HOOKS as DECLARED

    return " ".join(DECLARED[name].doc.split())


_OF_THE_VENDOR = frozenset(
    {"object", "Stream", "Event", "DeviceGraph", "MemoryPool", "AbstractContextManager"}
)


def _types_of(annotation: str) -> tuple[str, ...]:
    """The exact types that an annotation names, as far as they are nobody's own."""
    parts = [part.partition("[")[0].rpartition(".")[2] for part in annotation.split(" | ")]
    if not _OF_THE_VENDOR.isdisjoint(parts):
        return ("*",) if "None" not in parts else ("?",)
    names = {"None": ("NoneType",), "Sequence": ("list", "tuple"), "Mapping": ("dict", "mappingproxy")}
    return tuple(name for part in parts for name in names.get(part, (part,)))


def profile_of(name: str) -> str:
    """The profile in which a hook is tried."""
    from devicekit.contract.hooks import HOOKS as DECLARED

    return _ELSEWHERE.get(name) or _PROFILES.get(DECLARED[name].group, "core")


CAPABILITIES: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "caching_allocator": ("empty_cache", "memory_stats"),
        "peak_memory": ("memory_stats", "reset_peak_memory_stats"),
        "driver_memory": ("memory_info",),
        "streams": ("current_stream", "create_stream", "use_stream"),
        "events": ("create_event",),
        "graphs": ("create_graph", "is_capturing"),
        "async_copies": ("copies_overlap",),
        "pinned_memory": ("pin_memory",),
        "memory_fraction": ("set_memory_fraction",),
        "memory_pools": ("memory_pool",),
        "ipc": ("export_ipc", "import_ipc"),
        "rng_state": ("get_rng_state", "set_rng_state"),
        "unified_memory": ("device_properties",),
    }
)


def capability(name: str) -> tuple[str, ...] | None:
    """The hooks that a capability rests on, by this copy or by the host's contract; ``None``: there is none."""
    return capabilities().get(name)


def capabilities(contract: SpecifierSet | None = None) -> Mapping[str, tuple[str, ...]]:
    """Every capability with its hooks: those of this copy, and what the host's contract has beside them.

    Args:
        contract: a manifest's range; what the oldest contract in it does not know yet is left out.
    """
    from devicekit.contract.capabilities import CAPABILITIES as DECLARED

    newer = {
        name: one.hooks
        for name, one in DECLARED.items()
        if contract is None or one.since == CONTRACT or not contract.contains(CONTRACT)
    }
    return {**newer, **CAPABILITIES}


STATS_FIELDS = (
    "allocated",
    "requested",
    "active",
    "reserved",
    "inactive_split",
    "peak_allocated",
    "peak_active",
    "peak_reserved",
    "num_alloc_retries",
    "num_ooms",
    "num_device_alloc",
    "num_device_free",
    "num_segments",
)
ALLOCATOR_STATES = ("ok", "uninitialised", "bad_fork", "unsupported")
INFO_SOURCES = ("runtime", "management", "os", "estimate")
ERROR_KINDS = ("out_of_memory", "device_lost", "wrong_device", "not_initialised")
