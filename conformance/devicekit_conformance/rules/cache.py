"""DK-CACHE: emptying the cache gives memory back, and never memory that is in use."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, cast

from devicekit_conformance.context import MIB, Context, NotApplicable, NotRun, expect, fail
from devicekit_conformance.measures import (
    BLOCK,
    LARGE,
    PAUSES,
    ROUNDING,
    filled,
    held,
    info,
    intact,
    settle,
    stats,
)
from devicekit_conformance.outcomes import Level
from devicekit_conformance.rulebook import requirement

if TYPE_CHECKING:
    import torch


@requirement("DK-CACHE-001", profile="memory", isolated=60.0, device=False)
def legal_before_use(ctx: Context) -> None:
    """empty_cache() MUST be legal before the first allocation, twice in a row, and initialise nothing."""
    empty = ctx.hook("empty_cache")
    if ctx.device_count == 0:
        raise NotApplicable("there is no device on this machine")
    empty()
    empty()
    expect(ctx.probe.initialised() is not True, "a context exists after empty_cache()")


@requirement("DK-CACHE-002", profile="memory", hooks=["empty_cache"], after=["DK-CACHE-001"], unwaivable=True)
def live_data_survives(ctx: Context) -> None:
    """empty_cache() MUST NOT free, move or overwrite memory that is in use."""
    live = [filled(ctx, BLOCK, value) for value in (11, 22, 33)]
    gap = filled(ctx, BLOCK, 44)
    addresses = [block.data_ptr() for block in live]
    del gap
    ctx.hook("empty_cache")()
    others = [filled(ctx, BLOCK, value) for value in (55, 66, 77)]
    ctx.hook("synchronize")(0)
    for block, value, address in zip(live, (11, 22, 33), addresses, strict=True):
        expect(block.data_ptr() == address, f"a live block moved from {address:#x} to {block.data_ptr():#x}")
        expect(intact(block, value), "a live block holds other data after empty_cache() and new allocations")
    del others


@requirement(
    "DK-CACHE-003",
    profile="memory",
    hooks=["empty_cache"],
    capabilities=["caching_allocator"],
    after=["DK-CACHE-002"],
)
def unused_memory_is_given_back(ctx: Context) -> None:
    """empty_cache() MUST give blocks that are wholly unused back to the driver."""
    settle(ctx)
    base = held(ctx)
    block = ctx.probe.tensor(LARGE, 0)
    full = held(ctx)
    expect(full >= base + LARGE, f"a block of {LARGE} bytes raised what is held from {base} to {full}")
    del block
    ctx.hook("empty_cache")()
    left = held(ctx)
    expect(left <= base + ROUNDING, f"{full} bytes were held, and {left} still are after empty_cache()")


@requirement(
    "DK-CACHE-004",
    profile="memory",
    hooks=["empty_cache"],
    capabilities=["caching_allocator"],
    after=["DK-CACHE-003"],
)
def freed_memory_stays_until_emptied(ctx: Context) -> None:
    """A backend that claims caching_allocator MUST keep freed memory until the cache is emptied."""
    settle(ctx)
    block = ctx.probe.tensor(LARGE, 0)
    full = held(ctx)
    del block
    kept = held(ctx)
    settle(ctx)
    expect(kept == full, f"{full} bytes were held with a block live, and {kept} after it was freed")


@requirement("DK-CACHE-005", profile="memory", hooks=["empty_cache", "memory_stats"], after=["DK-CACHE-002"])
def accounting_survives(ctx: Context) -> None:
    """empty_cache() MUST leave allocated as it was and MUST NOT raise reserved."""
    live = ctx.probe.tensor(BLOCK, 0)
    gone = ctx.probe.tensor(BLOCK, 0)
    del gone
    before = stats(ctx)
    for _ in range(2):
        ctx.hook("empty_cache")()
        after = stats(ctx)
        expect(
            after.allocated == before.allocated,
            f"allocated was {before.allocated} before and {after.allocated} after",
        )
        if before.reserved is not None and after.reserved is not None:
            grew = after.reserved > before.reserved
            expect(not grew, f"reserved grew from {before.reserved} to {after.reserved}")
    del live


@requirement("DK-CACHE-006", profile="memory", hooks=["empty_cache"], after=["DK-CACHE-002"])
def keeps_the_current_device(ctx: Context) -> None:
    """empty_cache() MUST leave the current device as it was."""
    indices = sorted({0, ctx.device_count - 1}) if ctx.has("set_index") else [ctx.probe.current_index()]
    for index in reversed(indices):
        if ctx.has("set_index"):
            ctx.hook("set_index")(index)
        before = ctx.probe.current_index()
        ctx.hook("empty_cache")()
        after = ctx.probe.current_index()
        expect(before == after, f"device {before} was current before and {after} after")


@requirement(
    "DK-CACHE-007",
    profile="memory",
    hooks=["empty_cache", "memory_info"],
    capabilities=["caching_allocator", "driver_memory"],
    after=["DK-CACHE-003", "DK-DRIVER-003"],
)
def the_driver_gets_it(ctx: Context) -> None:
    """Memory that empty_cache() gives back MUST be free for the driver again."""
    gains = []
    for pause in PAUSES * 2:  # other processes come and go; memory that is never given back is never gained
        settle(ctx)
        block = filled(ctx, LARGE, 1)
        ctx.hook("synchronize")(0)
        del block
        time.sleep(pause)
        before = info(ctx).free
        ctx.hook("empty_cache")()
        time.sleep(pause)
        after = info(ctx).free
        if before is None or after is None:
            raise NotApplicable("free is unknown on this backend")
        gains.append(after - before)
        if gains[-1] >= LARGE // 2:
            return
    fail(f"{LARGE} bytes were cached, and emptying freed {max(gains)} at most")


@requirement("DK-CACHE-008", profile="hardware", hooks=["empty_cache"], after=["DK-CACHE-003"], min_devices=2)
def reaches_every_device(ctx: Context) -> None:
    """empty_cache() MUST reach every device of the process, whichever is current."""
    settle(ctx)
    base = held(ctx, 1)
    block = ctx.probe.tensor(LARGE, 1)
    del block
    ctx.hook("empty_cache")()
    left = held(ctx, 1)
    expect(left <= base + ROUNDING, f"device 1 holds {left} bytes after empty_cache(), and {base} before use")


@requirement("DK-CACHE-009", profile="memory", hooks=["empty_cache"], after=["DK-CACHE-002"], unwaivable=True)
def pending_work_is_safe(ctx: Context) -> None:
    """empty_cache() MUST NOT give away memory that submitted work still uses."""
    source = filled(ctx, BLOCK, 9)
    target = ctx.probe.tensor(BLOCK, 0)
    token = ctx.probe.submit(0, None)
    if token is None:
        raise NotRun("the probe cannot submit work that it can ask about")
    target.copy_(source)  # queued behind the work
    del source
    uploaded = ctx.probe.tensor(BLOCK, 0)
    uploaded.copy_(_on_host(ctx, 7), non_blocking=True)
    ctx.hook("empty_cache")()
    over = [filled(ctx, BLOCK, 1) for _ in range(3)]
    ctx.hook("synchronize")(0)
    expect(intact(target, 9), "a copy that was pending during empty_cache() wrote other data")
    expect(intact(uploaded, 7), "an upload that was pending during empty_cache() wrote other data")
    del over


def _on_host(ctx: Context, value: int) -> torch.Tensor:
    """A host block to upload from, page-locked where the backend can: only then is the upload pending."""
    import torch

    block = torch.full((BLOCK,), value, dtype=torch.uint8)
    return cast("torch.Tensor", ctx.hook("pin_memory")(block)) if ctx.has("pin_memory") else block


@requirement("DK-CACHE-010", profile="host", hooks=["empty_host_cache"], after=["DK-CACHE-002"])
def host_cache_can_be_emptied(ctx: Context) -> None:
    """empty_host_cache() MUST be legal with nothing cached, and leave pinned memory in use intact."""
    import torch

    ctx.result("empty_host_cache")
    if ctx.has("pin_memory"):
        pinned = ctx.hook("pin_memory")(torch.full((MIB,), 7, dtype=torch.uint8))
        ctx.result("empty_host_cache")
        expect(
            isinstance(pinned, torch.Tensor) and intact(pinned, 7), "a pinned tensor in use has other data"
        )


@requirement("DK-CACHE-011", profile="processes", hooks=["collect_ipc"], after=["DK-CACHE-002"])
def nothing_to_collect_is_legal(ctx: Context) -> None:
    """collect_ipc() MUST be legal when there is nothing to collect."""
    ctx.result("collect_ipc")
    ctx.result("collect_ipc")


@requirement("DK-CACHE-012", Level.SHOULD, profile="memory", hooks=["empty_cache"], after=["DK-CACHE-002"])
def emptying_an_empty_cache_is_quick(ctx: Context) -> None:
    """empty_cache() SHOULD take less than 50 ms when there is nothing to give back."""
    settle(ctx)
    started = time.perf_counter()
    ctx.hook("empty_cache")()
    spent = time.perf_counter() - started
    expect(spent < 0.05, f"it took {spent * 1e3:.0f} ms")
