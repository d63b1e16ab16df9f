"""DK-STATE: the allocator's statistics are true, in bytes, and reading them changes nothing."""

from __future__ import annotations

from devicekit_conformance import frozen_contract
from devicekit_conformance.context import MIB, Context, NotApplicable, expect
from devicekit_conformance.measures import BLOCK, ROUNDING, granule, held, known, settle, stats
from devicekit_conformance.rulebook import requirement

_BYTES = ("allocated", "requested", "active", "reserved", "inactive_split")
_PAIRS = (
    ("requested", "allocated"),
    ("allocated", "active"),
    ("allocated", "reserved"),
    ("active", "reserved"),
    ("allocated", "peak_allocated"),
    ("active", "peak_active"),
    ("reserved", "peak_reserved"),
)


@requirement("DK-STATE-001", profile="memory", hooks=["memory_stats"], after=["DK-ORDER-001"])
def numbers_are_ints(ctx: Context) -> None:
    """Every number in memory_stats() MUST be an int that is not negative, or None where it is not known."""
    block = ctx.probe.tensor(BLOCK, 0)
    found = stats(ctx)
    for name in frozen_contract.STATS_FIELDS:
        value = getattr(found, name)
        ok = value is None or (type(value) is int and value >= 0)
        expect(ok, f"{name} is {value!r} ({type(value).__name__})")
    state = getattr(found.state, "value", found.state)
    expect(state in frozen_contract.ALLOCATOR_STATES, f"state is {found.state!r}")
    expect(all(type(one) is int for one in found.raw.values()), "raw has values that are no ints")
    del block


@requirement("DK-STATE-002", profile="memory", hooks=["memory_stats"], after=["DK-STATE-001"])
def numbers_without_an_allocator_are_unknown(ctx: Context) -> None:
    """memory_stats() MUST NOT give numbers in any state but "ok": unknown is None, and never 0."""
    found = stats(ctx)
    if found.state.value == "ok":
        return
    given = [name for name in frozen_contract.STATS_FIELDS if getattr(found, name) is not None]
    expect(not given, f"the state is {found.state.value!r}, and {', '.join(given)} have numbers")


@requirement("DK-STATE-003", profile="memory", isolated=60.0, device=False)
def reading_before_use_is_harmless(ctx: Context) -> None:
    """memory_stats() MUST work before the first allocation, with unknown numbers, and initialise nothing."""
    read = ctx.hook("memory_stats")
    if ctx.device_count == 0:
        raise NotApplicable("there is no device on this machine")
    found = read(0)
    ctx.check_type("memory_stats", found)
    expect(ctx.probe.initialised() is not True, "a context exists after reading")
    if ctx.probe.initialised() is False:
        given = [name for name in frozen_contract.STATS_FIELDS if getattr(found, name) is not None]
        expect(not given, f"nothing is initialised, and {', '.join(given)} have numbers instead of None")


@requirement("DK-STATE-004", profile="memory", hooks=["memory_stats"], after=["DK-STATE-001"])
def order_of_sizes(ctx: Context) -> None:
    """requested <= allocated <= active <= reserved, and each figure <= its peak, MUST hold in every reading."""
    blocks = []
    for step in range(7):
        if step < 3:
            blocks.append(ctx.probe.tensor(BLOCK + step * 4097, 0))
        elif blocks:
            blocks.pop()
        found = stats(ctx)
        for small, large in _PAIRS:
            low, high = getattr(found, small), getattr(found, large)
            ordered = low is None or high is None or low <= high
            expect(ordered, f"with {len(blocks)} blocks live, {small} is {low} and {large} is {high}")


@requirement("DK-STATE-005", profile="memory", hooks=["memory_stats"], after=["DK-STATE-001"])
def allocations_are_counted_in_bytes(ctx: Context) -> None:
    """A live block of N bytes MUST raise allocated by at least N, and by no more than rounding explains."""
    before = known(stats(ctx).allocated, "allocated")
    block = ctx.probe.tensor(BLOCK, 0)
    rise = known(stats(ctx).allocated, "allocated") - before
    unit = _unit(rise)
    expect(
        BLOCK <= rise <= BLOCK + ROUNDING,
        f"a block of {BLOCK} bytes raised allocated by {rise}{unit}",
    )
    del block


def _unit(rise: int) -> str:
    for name, size in (("KiB", 1024), ("MiB", MIB), ("kB", 1000), ("MB", 1_000_000)):
        if rise and abs(rise * size - BLOCK) <= max(size, BLOCK // 50):
            return f": that is {name}, not bytes"
    return ""


@requirement("DK-STATE-006", profile="memory", hooks=["memory_stats"], after=["DK-STATE-005"])
def freed_blocks_are_no_longer_counted(ctx: Context) -> None:
    """allocated MUST return to where it was when a block is freed, although the allocator may keep the memory."""
    before = known(stats(ctx).allocated, "allocated")
    for _ in range(5):
        block = ctx.probe.tensor(BLOCK, 0)
        del block
        now = known(stats(ctx).allocated, "allocated")
        expect(now == before, f"allocated was {before} before a block was made and freed, and {now} after")


@requirement(
    "DK-STATE-007",
    profile="memory",
    hooks=["memory_stats"],
    capabilities=["caching_allocator"],
    after=["DK-STATE-001"],
)
def a_caching_allocator_knows_its_sizes(ctx: Context) -> None:
    """A backend that claims caching_allocator MUST know allocated and reserved once a block is live."""
    block = ctx.probe.tensor(BLOCK, 0)
    found = stats(ctx)
    expect(found.state.value == "ok", f"a block is live, and the state is {found.state.value!r}")
    expect(found.allocated is not None, "allocated is None")
    expect(found.reserved is not None, "reserved is None")
    del block


@requirement("DK-STATE-008", profile="memory", hooks=["memory_stats"], after=["DK-STATE-006"])
def reading_changes_nothing(ctx: Context) -> None:
    """Reading memory_stats() MUST NOT allocate, empty the cache, reset a peak or change the current device."""
    block = ctx.probe.tensor(2 * BLOCK, 0)
    del block  # leaves something in the cache that a careless reading would give back
    current, seen = ctx.probe.current_index(), ctx.probe.held(0)
    first = stats(ctx)
    for _ in range(50):
        last = stats(ctx)
    changed = [name for name in frozen_contract.STATS_FIELDS if getattr(first, name) != getattr(last, name)]
    expect(not changed, f"after 50 readings, these differ: {', '.join(changed)}")
    expect(ctx.probe.current_index() == current, "the current device is another one")
    now = ctx.probe.held(0)
    expect(seen == now, f"the allocator held {seen} bytes before the readings and {now} after")


@requirement("DK-STATE-009", profile="memory", hooks=["memory_stats"], after=["DK-STATE-006"])
def reading_does_not_wait(ctx: Context) -> None:
    """Reading memory_stats() MUST NOT synchronise the device."""
    token = ctx.probe.submit(0, None)
    if token is None or token.done():
        raise NotApplicable("work on this device is finished when it is submitted")
    for _ in range(3):
        stats(ctx)
    pending = not token.done()
    ctx.hook("synchronize")(0)
    expect(pending, "work that was pending before three readings was finished after them")


@requirement(
    "DK-STATE-010",
    profile="memory",
    hooks=["memory_stats", "reset_peak_memory_stats"],
    after=["DK-STATE-006"],
)
def peaks_remember(ctx: Context) -> None:
    """peak_allocated MUST stay at the highest allocated since the last reset after the memory was freed."""
    known(stats(ctx).peak_allocated, "peak_allocated")
    cached = ctx.probe.tensor(4 * BLOCK, 0)
    del cached  # no peak of allocated, but one of what is reserved
    ctx.hook("reset_peak_memory_stats")(0)
    blocks = [ctx.probe.tensor(BLOCK, 0) for _ in range(2)]
    top = known(stats(ctx).allocated, "allocated")
    blocks.clear()
    peak = known(stats(ctx).peak_allocated, "peak_allocated")
    expect(peak >= top, f"allocated reached {top}, and its peak is {peak} after the blocks were freed")
    expect(
        peak <= top + ROUNDING, f"allocated reached {top} at most, and its peak is {peak}{_whose(ctx, peak)}"
    )


@requirement(
    "DK-STATE-011",
    profile="memory",
    hooks=["memory_stats", "reset_peak_memory_stats"],
    after=["DK-STATE-006"],
)
def reset_sets_peaks_to_current(ctx: Context) -> None:
    """reset_peak_memory_stats() MUST make every peak equal to its current value, neither higher nor 0."""
    kept = ctx.probe.tensor(BLOCK, 0)
    blocks = [ctx.probe.tensor(4 * BLOCK, 0) for _ in range(2)]
    blocks.clear()
    ctx.result("reset_peak_memory_stats", 0)
    found = stats(ctx)
    for name in ("allocated", "active", "reserved"):
        value, peak = getattr(found, name), getattr(found, f"peak_{name}")
        if value is not None and peak is not None:
            expect(
                value <= peak <= value + ROUNDING,
                f"right after the reset, {name} is {value} and its peak {peak}{_whose(ctx, peak)}",
            )
    del kept


def _whose(ctx: Context, peak: int) -> str:
    """A word on where a peak that is too high may come from."""
    holds = ctx.probe.held(0)
    if holds is None or peak < holds:
        return ""
    return f": {holds} is what the process holds from the driver, and the peak is to leave its cache out"


@requirement("DK-STATE-013", profile="memory", hooks=["memory_stats"], after=["DK-STATE-006"])
def reserved_is_what_the_allocator_holds(ctx: Context) -> None:
    """reserved MUST be what the allocator holds from the driver by torch's own count."""
    block = ctx.probe.tensor(BLOCK, 0)
    reserved, seen = known(stats(ctx).reserved, "reserved"), ctx.probe.held(0)
    if seen is None:
        raise NotApplicable("torch has no count of its own for this device")
    page = granule([reserved])
    near = reserved == seen or abs(reserved - seen) < page
    expect(near, f"reserved is {reserved}, and the allocator holds {seen}")
    del block


@requirement(
    "DK-STATE-014", profile="hardware", hooks=["memory_stats"], after=["DK-STATE-005"], min_devices=2
)
def statistics_are_the_named_devices(ctx: Context) -> None:
    """memory_stats(index) MUST count the device it names, whichever is current."""
    before = known(stats(ctx, 0).allocated, "allocated"), known(stats(ctx, 1).allocated, "allocated")
    block = ctx.probe.tensor(BLOCK, 1)
    after = known(stats(ctx, 0).allocated, "allocated"), known(stats(ctx, 1).allocated, "allocated")
    expect(after[0] == before[0], "a block on device 1 changed the statistics of device 0")
    rise = after[1] - before[1]
    current = ctx.probe.current_index()
    expect(
        rise >= BLOCK,
        f"a block on device 1 did not change the statistics of device 1: with device {current} current, the index "
        "is ignored",
    )
    del block


@requirement("DK-STATE-015", profile="memory", hooks=["memory_stats"], after=["DK-STATE-001"])
def counters_never_go_back(ctx: Context) -> None:
    """The counters num_* except num_segments MUST never decrease."""
    names = [one for one in frozen_contract.STATS_FIELDS if one.startswith("num_") and one != "num_segments"]
    last = stats(ctx)
    for _ in range(4):
        block = ctx.probe.tensor(BLOCK, 0)
        del block
        settle(ctx)
        now = stats(ctx)
        for name in names:
            was, is_now = getattr(last, name), getattr(now, name)
            expect(
                was is None or (is_now is not None and is_now >= was), f"{name} went from {was} to {is_now}"
            )
        last = now


@requirement("DK-STATE-016", profile="memory", hooks=["memory_stats"], after=["DK-STATE-005"])
def large_sizes_do_not_overflow(ctx: Context) -> None:
    """Statistics MUST be exact above 4 GiB, where 32-bit counters wrap around."""
    before = known(stats(ctx).allocated, "allocated")
    room = ctx.hook("memory_info")(0) if ctx.has("memory_info") else None
    if getattr(room, "free", None) is None or getattr(room, "free") < 8 << 30:  # noqa: B009
        raise NotApplicable("fewer than 8 GiB are free")
    block = ctx.probe.tensor(5 << 30, 0)
    rise = known(stats(ctx).allocated, "allocated") - before
    del block
    settle(ctx)
    expect(rise >= 5 << 30, f"a block of 5 GiB raised allocated by {rise}")


@requirement("DK-STATE-017", profile="memory", hooks=["memory_stats"], after=["DK-STATE-006"])
def reserved_covers_the_cache(ctx: Context) -> None:
    """reserved MUST include freed blocks that the allocator keeps."""
    if not ctx.claims("caching_allocator"):
        raise NotApplicable("the backend does not claim caching_allocator")
    settle(ctx)
    block = ctx.probe.tensor(BLOCK, 0)
    with_block = held(ctx)
    del block
    cached = known(stats(ctx).reserved, "reserved")
    expect(
        cached >= with_block, f"reserved fell from {with_block} to {cached} when a block went to the cache"
    )


@requirement("DK-STATE-018", profile="memory", hooks=["memory_stats", "pin_memory"], after=["DK-STATE-005"])
def pinned_memory_is_not_the_devices(ctx: Context) -> None:
    """Pinned host memory MUST NOT count as allocated on the device."""
    import torch

    before = known(stats(ctx).allocated, "allocated")
    pinned = ctx.hook("pin_memory")(torch.zeros(BLOCK, dtype=torch.uint8))
    after = known(stats(ctx).allocated, "allocated")
    del pinned
    expect(
        before == after, f"allocated went from {before} to {after} when {BLOCK} bytes of the host were pinned"
    )
