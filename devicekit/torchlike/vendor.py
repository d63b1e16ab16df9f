"""What a plugin says of its vendor: names, error rules and quirks, in one record."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from devicekit.torchlike.errors import ErrorRules
from devicekit.torchlike.quirks import Quirk


@dataclass(frozen=True, slots=True)
class Vendor:
    """The facts in which torch's device modules differ."""

    device_type: str  # torch's, and the module's name in torch
    collective_backend: str | None  # None, here and below: not known, so the hook is absent
    visible_devices_variable: str | None
    profiler_activity: str  # a name in torch.profiler.ProfilerActivity
    graph_class: str  # its name in the module
    errors: ErrorRules
    quirks: tuple[Quirk, ...] = ()
    copies_overlap: bool | None = None
    host_empty_cache: str | None = None  # the module's own function that empties the pinned cache
    stream_handle: str | None = None  # the attribute of its streams that holds the native one
    torch_allocator: bool = False  # its caching allocator takes torch's own settings
    # Field of `Telemetry` to the module's function, and the factor from its unit to the contract's.
    telemetry: Mapping[str, tuple[str, float]] = field(default_factory=dict)
