"""DK-CAP: what the manifest claims is there, what it denies is not, and both are judged."""

from __future__ import annotations

from typing import cast

from devicekit_conformance import frozen_contract
from devicekit_conformance.context import Context, NotApplicable, expect, fail
from devicekit_conformance.effects import effect_of
from devicekit_conformance.measures import BLOCK
from devicekit_conformance.replaced import Replaced
from devicekit_conformance.rulebook import requirement
from devicekit_conformance.trial import Trial
from devicekit_conformance.trying import in_a_child

_LIMIT = 40.0  # seconds, for one hook

# Claims that a backend makes by what its hooks answer or do, not by having them.
_BY_ANSWER = frozenset(
    {"caching_allocator", "peak_memory", "async_copies", "unified_memory", "driver_memory", "lazy_execution"}
)


@requirement("DK-CAP-001", profile="core", device=False)
def claims_rest_on_hooks(ctx: Context) -> None:
    """Each capability that is claimed MUST exist, and every hook it rests on MUST be implemented.

    A claim falls, and is no fault, with a hook that the object sets to None.
    """
    for name in sorted(ctx.manifest.capabilities):
        founded_on = frozen_contract.capability(name)
        if founded_on is None:
            fail(f"there is no capability {name!r}")
        absent = [hook for hook in founded_on if not ctx.has(hook) and hook not in ctx.taken_back]
        expect(not absent, f"{name} is claimed, and {', '.join(absent)} is not implemented")


@requirement("DK-CAP-002", profile="core", device=False)
def implemented_capabilities_are_claimed(ctx: Context) -> None:
    """A capability whose hooks are all implemented MUST be claimed: otherwise engines leave it unused.

    A manifest that admits an older contract may leave out what that one does not know.
    """
    unclaimed = [
        name
        for name, hooks in frozen_contract.capabilities(ctx.manifest.contract).items()
        if name not in _BY_ANSWER and not ctx.claims(name) and all(ctx.has(hook) for hook in hooks)
    ]
    expect(not unclaimed, f"the hooks of {', '.join(unclaimed)} are implemented, and it is not claimed")


@requirement("DK-CAP-003", profile="host", hooks=["copies_overlap"], after=["DK-ORDER-001"])
def async_copies_is_what_the_hook_says(ctx: Context) -> None:
    """async_copies MUST be claimed exactly where copies_overlap() is True."""
    found = ctx.result("copies_overlap", 0)
    expect(found is ctx.claims("async_copies"), f"copies_overlap() is {found}, and the manifest disagrees")


@requirement("DK-CAP-004", profile="core", hooks=["device_properties"], after=["DK-ORDER-001"])
def unified_memory_is_what_the_device_says(ctx: Context) -> None:
    """unified_memory MUST be claimed exactly where device_properties() says so."""
    found = getattr(ctx.result("device_properties", 0), "unified_memory", None)
    expect(
        (found is True) is ctx.claims("unified_memory"), f"unified_memory is {found}, the manifest disagrees"
    )


@requirement("DK-CAP-005", profile="memory", hooks=["memory_stats"], after=["DK-ORDER-001"])
def a_cache_that_is_there_is_claimed(ctx: Context) -> None:
    """caching_allocator and peak_memory MUST be claimed where the statistics show a cache, or peaks."""
    kept = ctx.probe.tensor(BLOCK, 0)
    cached = ctx.probe.tensor(BLOCK, 0)
    del cached
    found = ctx.hook("memory_stats")(0)
    unused = getattr(found, "fragmentation", None)
    shows = unused is not None and unused >= BLOCK
    denied = shows and ctx.has("empty_cache") and not ctx.claims("caching_allocator")
    expect(not denied, "the statistics show a cache, and caching_allocator is not claimed")
    peak = getattr(found, "peak_allocated", None)
    denied = peak is not None and ctx.has("reset_peak_memory_stats") and not ctx.claims("peak_memory")
    expect(not denied, "the statistics have peaks that can be reset, and peak_memory is not claimed")
    del kept


@requirement("DK-CAP-006", profile="memory", capabilities=["peak_memory"], after=["DK-ORDER-001"])
def claimed_peaks_are_known(ctx: Context) -> None:
    """A backend that claims peak_memory MUST know peak_allocated once a block is live."""
    block = ctx.probe.tensor(BLOCK, 0)
    found = ctx.hook("memory_stats")(0)
    expect(getattr(found, "peak_allocated", None) is not None, "peak_allocated is None")
    del block


@requirement("DK-CAP-007", profile="memory", hooks=["memory_info"], after=["DK-ORDER-001"])
def driver_memory_is_claimed_where_it_is_known(ctx: Context) -> None:
    """A backend MUST claim driver_memory if it knows free and total, and not otherwise."""
    found = ctx.hook("memory_info")(0)
    unknown = [name for name in ("free", "total") if getattr(found, name, None) is None]
    if ctx.claims("driver_memory"):
        expect(not unknown, f"it is claimed, and {' and '.join(unknown)} is None")
    else:
        expect(bool(unknown), "it is not claimed, and memory_info() knows both")


@requirement("DK-CAP-008", profile="core", device=False)
def declared_noops_are_hooks(ctx: Context) -> None:
    """A hook that the manifest lists as noop or emulated MUST be implemented, and MUST NOT be in both lists.

    One that the object sets to None is absent, and what the manifest says of it is no fault.
    """
    noop, emulated = ctx.manifest.noop, ctx.manifest.emulated
    absent = sorted(name for name in (noop | emulated) - ctx.taken_back if not ctx.has(name))
    expect(not absent, f"{', '.join(absent)} is listed and not implemented")
    both = sorted(noop & emulated)
    expect(not both, f"{', '.join(both)} is in both lists")


@requirement("DK-CAP-009", profile="host", hooks=["pin_memory"], capabilities=["pinned_memory"])
def pinned_memory_is_pinned(ctx: Context) -> None:
    """pin_memory() MUST return a page-locked host tensor with the same contents, and leave the original alone."""
    import torch

    original = torch.arange(4096, dtype=torch.int32)
    pinned = ctx.result("pin_memory", original)
    if not isinstance(pinned, torch.Tensor):
        raise NotApplicable("it returned no tensor")
    expect(torch.equal(pinned, original), "the contents differ")
    expect(pinned.device.type == "cpu", f"it is on {pinned.device}")
    expect(ctx.probe.pinned(pinned) is not False, "it is not page-locked")
    twice = ctx.hook("pin_memory")(pinned)
    same = isinstance(twice, torch.Tensor) and twice.data_ptr() == pinned.data_ptr()
    expect(same, "pinning a pinned tensor made another copy")


@requirement("DK-CAP-010", profile="host", hooks=["host_memory_stats"])
def host_statistics_are_ints(ctx: Context) -> None:
    """host_memory_stats() MUST give ints that are not negative, or None, with allocated <= reserved."""
    found = ctx.result("host_memory_stats")
    for name in ("allocated", "reserved"):
        value = getattr(found, name)
        expect(value is None or (type(value) is int and value >= 0), f"{name} is {value!r}")
    allocated, reserved = getattr(found, "allocated", None), getattr(found, "reserved", None)
    ordered = allocated is None or reserved is None or allocated <= reserved
    expect(ordered, f"allocated is {allocated} and reserved is {reserved}")


@requirement("DK-CAP-011", profile="core", isolated=90.0, device=False, after=["DK-CAP-008", "DK-ORDER-001"])
def a_noop_has_nothing_to_do(ctx: Context) -> None:
    """A hook MUST be listed as noop only where it returns nothing and has nothing to do.

    It has something to do if its effect is seen, and is seen no more with a hook in its place that does nothing.
    """
    for name in sorted(ctx.manifest.noop):
        if ctx.has(name) and ctx.device_count:
            wrong = _has_to_do(ctx, name)
            expect(wrong is None, f"{name} is listed as noop, and {wrong}")


def _has_to_do(ctx: Context, hook: str) -> str | None:
    """What the hook is there to do on this device; ``None`` where there is nothing."""
    if frozen_contract.hook(hook).returns != ("NoneType",):
        return "it returns something"
    run = effect_of(hook)
    itself, _ = in_a_child(ctx, Trial(ctx, hook), run, _LIMIT)
    if itself == "fail":
        return None  # which other requirements tell
    idle = cast("Context", Replaced(ctx, hook, lambda *arguments: None))
    ended, said = in_a_child(ctx, Trial(idle, hook), run, _LIMIT)
    return f"if nothing is done: {said}" if ended == "fail" else None
