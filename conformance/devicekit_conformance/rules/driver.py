"""DK-DRIVER: the driver's free and total bytes, and who holds them."""

from __future__ import annotations

import os
import time
from collections.abc import Callable

from devicekit_conformance import frozen_contract
from devicekit_conformance.context import MIB, Context, NotApplicable, expect, fail
from devicekit_conformance.measures import (
    BLOCK,
    LARGE,
    PAUSES,
    filled,
    granule,
    in_time,
    info,
    known,
    settle,
    stats,
)
from devicekit_conformance.outcomes import Level
from devicekit_conformance.rulebook import requirement


@requirement("DK-DRIVER-001", profile="memory", hooks=["memory_info"], after=["DK-ORDER-001"])
def figures_are_ints_in_order(ctx: Context) -> None:
    """memory_info() MUST give free and total as ints with 0 <= free <= total, or None.

    Its source is one of the contract's words, or None.
    """
    block = ctx.probe.tensor(LARGE, 0)  # with nothing in use, swapped figures are equal
    found = info(ctx)
    del block
    for name in ("free", "total"):
        value = getattr(found, name)
        expect(value is None or type(value) is int, f"{name} is {value!r} ({type(value).__name__})")
        expect(value is None or value >= 0, f"{name} is {value}")
    if found.free is not None and found.total is not None:
        expect(found.free <= found.total, f"free is {found.free} and total is {found.total}")
    expect(found.total is None or found.total > 0, "total is 0: unknown is None")
    named = found.source in (None, *frozen_contract.INFO_SOURCES)
    told = found.free is not None or found.total is not None
    expect(named or not told, f"source is {found.source!r}, not one of {frozen_contract.INFO_SOURCES}")


@requirement("DK-DRIVER-002", profile="memory", hooks=["memory_info"], after=["DK-DRIVER-001"])
def total_is_constant_bytes(ctx: Context) -> None:
    """total MUST be bytes, constant, and agree with device_properties().total_memory."""
    settle(ctx)
    first = known(info(ctx).total, "total")
    expect(first >= 256 * MIB, f"total is {first}: that is not bytes")
    block = ctx.probe.tensor(4 * BLOCK, 0)
    second = info(ctx).total
    expect(first == second, f"total was {first} and is {second} with a block live")
    del block
    if ctx.has("device_properties"):
        told = getattr(ctx.hook("device_properties")(0), "total_memory", None)
        # Drivers keep some of the memory for themselves; a unit mistake is a factor of 1000.
        near = told is None or 0.8 * told <= first <= 1.25 * told
        expect(near, f"total is {first}, and device_properties().total_memory is {told}")


@requirement("DK-DRIVER-003", profile="memory", hooks=["memory_info"], after=["DK-DRIVER-001"])
def free_falls(ctx: Context) -> None:
    """free MUST fall when memory is taken from the driver, by at least half of what was taken."""
    tried = []
    # Other processes may free as much meanwhile, on a busy host many times over; a constant never falls.
    for factor, pause in zip((1, 1, 2, 2, 4, 4, 2, 4, 2, 4, 2, 4), PAUSES * 4, strict=True):
        settle(ctx)
        time.sleep(pause)
        before = known(info(ctx).free, "free")
        block = filled(ctx, factor * LARGE, 1)
        ctx.hook("synchronize")(0)
        time.sleep(pause)
        fall = before - known(info(ctx).free, "free")
        del block
        settle(ctx)
        if fall >= factor * LARGE // 2:
            return
        tried.append(f"{fall} of {factor * LARGE}")
    ctx.needs_its_memory()
    fail(f"memory was taken from the driver, and free fell by {', '.join(tried)} bytes")


@requirement(
    "DK-DRIVER-004", profile="memory", hooks=["memory_info", "memory_stats"], after=["DK-DRIVER-001"]
)
def free_and_reserved_fit_in_total(ctx: Context) -> None:
    """free + reserved MUST NOT exceed total: what this process's cache holds is not free."""

    def judge(pause: Callable[[], None]) -> str:
        block = ctx.probe.tensor(LARGE, 0)
        del block
        pause()
        reserved = known(stats(ctx).reserved, "reserved")
        found = info(ctx)
        free, total = known(found.free, "free"), known(found.total, "total")
        settle(ctx)
        fits = free + reserved <= total + granule((reserved,))  # which may be counted in whole pages
        told = f"free {free} + reserved {reserved} > total {total}: free leaves out what the cache keeps"
        return "" if fits else told

    wrong = in_time(judge)
    expect(not wrong, wrong)


@requirement("DK-DRIVER-005", profile="memory", hooks=["memory_info"], after=["DK-DRIVER-001"])
def reading_the_driver_keeps_the_cache(ctx: Context) -> None:
    """Reading memory_info() MUST NOT empty the cache or allocate."""
    block = ctx.probe.tensor(2 * BLOCK, 0)
    del block
    before = ctx.probe.held(0)
    if before is None:
        raise NotApplicable("torch has no count of its own for this device")
    for _ in range(20):
        info(ctx)
    after = ctx.probe.held(0)
    expect(before == after, f"the allocator held {before} bytes before 20 readings and {after} after")


@requirement("DK-DRIVER-006", profile="memory", hooks=["process_memory"], after=["DK-ORDER-001"])
def processes_are_listed(ctx: Context) -> None:
    """process_memory() MUST list processes with their pid and their bytes, an int or None."""
    found = ctx.result("process_memory", 0)
    if found is None:
        return
    for one in found if isinstance(found, (list, tuple)) else ():
        expect(type(one).__name__ == "ProcessMemory", f"it lists {one!r}")
        expect(type(one.pid) is int and one.pid > 0, f"a pid is {one.pid!r}")
        ok = one.used is None or (type(one.used) is int and one.used >= 0)
        expect(ok, f"process {one.pid} uses {one.used!r}")


@requirement(
    "DK-DRIVER-007", Level.SHOULD, profile="hardware", hooks=["process_memory"], after=["DK-DRIVER-006"]
)
def this_process_is_listed(ctx: Context) -> None:
    """process_memory() SHOULD list this process once it holds memory."""
    block = filled(ctx, BLOCK, 1)
    found = ctx.hook("process_memory")(0)
    if found is None:
        raise NotApplicable("the management library cannot be asked")
    pids = [one.pid for one in found if hasattr(one, "pid")] if isinstance(found, (list, tuple)) else []
    del block
    expect(os.getpid() in pids, f"this process is {os.getpid()}, and these are listed: {pids}")


@requirement("DK-DRIVER-008", Level.SHOULD, profile="memory", after=["DK-ORDER-001"])
def an_accelerator_says_what_is_left(ctx: Context) -> None:
    """A backend SHOULD implement memory_info or memory_stats: an engine sizes its pools by one of them.

    Three hooks are required, and neither of these is one. Without both, a user has to say how much to take.
    """
    expect(ctx.has("memory_info") or ctx.has("memory_stats"), "neither is implemented")
