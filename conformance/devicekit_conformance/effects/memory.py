"""The allocator's numbers and limits, against torch's own count or against what was allocated."""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Callable
from functools import partial
from typing import Any

from devicekit_conformance import frozen_contract
from devicekit_conformance.context import MIB
from devicekit_conformance.effects import effect
from devicekit_conformance.effects.apart import tells_processes_apart
from devicekit_conformance.effects.limits import leaves
from devicekit_conformance.effects.peaks import peaks_outlast
from devicekit_conformance.measures import (
    BLOCK,
    GIB,
    LARGE,
    ROUNDING,
    granule,
    in_time,
    large_of,
    within_the_machine,
)
from devicekit_conformance.trial import Trial

_OWN_KEYS = {
    "allocated": "allocated_bytes.all.current",
    "requested": "requested_bytes.all.current",
    "active": "active_bytes.all.current",
    "reserved": "reserved_bytes.all.current",
    "inactive_split": "inactive_split_bytes.all.current",
    "peak_allocated": "allocated_bytes.all.peak",
    "peak_active": "active_bytes.all.peak",
    "peak_reserved": "reserved_bytes.all.peak",
    "num_alloc_retries": "num_alloc_retries",
    "num_ooms": "num_ooms",
    "num_device_alloc": "num_device_alloc",
    "num_device_free": "num_device_free",
    "num_segments": "segment.all.current",
}


_MANY = 24  # blocks, each of which takes a segment


@effect("memory_stats")
def memory_stats(trial: Trial) -> None:
    if trial.ctx.probe.initialised() is False:
        found = trial.call(trial.index)
        given = [name for name in frozen_contract.STATS_FIELDS if getattr(found, name) is not None]
        trial.expect(
            not given, f"nothing is initialised, and {', '.join(given)} have numbers instead of None"
        )
        state = getattr(found.state, "value", found.state)
        told = f"nothing is initialised, and the state is {state!r}"
        trial.expect(state in ("uninitialised", "unsupported"), told)
    odd = BLOCK + 4097 * (trial.index + 1)
    if trial.calls[0] <= 1:
        trial.ctx.probe.exhaust(trial.index)
        large = trial.tensor(large_of(trial))
        del large
        trial.own("empty_cache")
    kept = trial.tensor(odd)
    cached = trial.tensor(2 * odd)
    del cached
    first = trial.call(trial.index)
    _compare(trial, first)
    plain = all(type(name) is str and type(value) is int for name, value in first.raw.items())
    trial.expect(plain, "raw has other things than ints by their names")
    trial.expect(first.source is None or type(first.source) is str, f"source is {first.source!r}")
    told = repr(first)
    page = _pages_of(first)["current"]
    wanted = odd + 2 * page  # more than a page, where sizes are counted in pages
    second_block = trial.tensor(wanted)
    second = trial.call(trial.index)
    _compare(trial, second)
    for name in ("allocated", "active", "requested"):
        was, now = getattr(first, name), getattr(second, name)
        if was is None or now is None:
            trial.expect(was is now, f"{name} is {was}, and {now} a call later")
            continue
        # Of a block that was cached, what is left may be too little for a block of its own, and goes with it.
        most = wanted + page if name == "requested" else wanted + ROUNDING + page
        trial.expect(
            wanted - page <= now - was <= most, f"a block of {wanted} bytes raised {name} by {now - was}"
        )
    trial.equal(repr(first), told, "a record that was returned before another call")
    if isinstance(first.raw, dict):
        first.raw.clear()
        again = trial.call(trial.index)
        trial.expect(again.raw or not second.raw, "emptying raw of one record emptied that of the next")
    _waits_for_a_stream(trial)
    if not trial.situation:
        peaks_outlast(trial)
    if trial.calls[0] < 12 and (trial.own("mem_get_info", trial.index) or (0, 0))[0] > 8 * GIB:
        huge = trial.tensor(5 * GIB)
        _compare(trial, trial.call(trial.index))
        del huge
        trial.own("empty_cache")
        _compare(trial, trial.call(trial.index))
    del kept, second_block


def _waits_for_a_stream(trial: Trial) -> None:
    """A block that was freed while a stream still uses it is active, and no longer allocated."""
    side = trial.new_stream()
    if side is None or trial.runtime is None:
        return
    block = trial.tensor(BLOCK)
    try:
        block.record_stream(side)
    except (RuntimeError, NotImplementedError, TypeError):
        return  # of a device whose streams torch does not know
    token = trial.long_work(side)
    del block
    trial.own("reset_peak_memory_stats", trial.index)
    more = trial.tensor(2 * BLOCK)  # at whose peak the one is still active; where there is no room it waits
    del more
    pending = token is not None and not token.done()
    _compare(trial, trial.call(trial.index))
    waited = pending and token is not None and token.done()
    trial.expect(not waited, "it waited for a stream that still used a freed block")
    trial.finish()


def _compare(trial: Trial, found: Any) -> None:
    """Every number of the record with torch's own, where torch counts."""
    for small, big in (("requested", "allocated"), ("allocated", "active"), ("active", "reserved")):
        low, high = getattr(found, small), getattr(found, big)
        trial.expect(low is None or high is None or low <= high, f"{small} is {low} and {big} is {high}")
    state = getattr(found.state, "value", found.state)
    if state == "unsupported":
        trial.expect(not _numbers(found), "its state is 'unsupported', and it has numbers")
        return
    trial.equal(state, "ok", "with memory in use, the state")
    own = trial.own("memory_stats", trial.index)
    if not isinstance(own, dict):
        return
    pages = _pages_of(found)
    for name, value in _numbers(found):
        truth = own.get(_OWN_KEYS[name])
        if truth is None:
            continue
        trial.expect(
            value == truth or abs(value - truth) < pages[_kind(name)],
            f"{name} is {value}, and torch itself counts {truth}{_unit(value, truth)}",
        )


def _kind(name: str) -> str:
    return name.split("_")[0] if name.startswith(("num_", "peak_", "requested")) else "current"


def _pages_of(found: Any) -> dict[str, int]:
    """In which pages sizes are counted: what is now, peaks and what was asked for apart; counters, exactly."""
    sizes: dict[str, list[int]] = {"current": [], "peak": [], "requested": [], "num": []}
    for name, value in _numbers(found):
        sizes[_kind(name)].append(value)
    return {kind: 0 if kind == "num" else granule(values) for kind, values in sizes.items()}


def _numbers(found: Any) -> list[tuple[str, int]]:
    return [(name, value) for name in _OWN_KEYS if (value := getattr(found, name)) is not None]


def _unit(value: int, truth: int) -> str:
    for name, size in (("KiB", 1024), ("MiB", MIB), ("kB", 1000), ("MB", 1_000_000)):
        if truth >= size and value == truth // size:
            return f": that is {name}, not bytes"
    return ": it has wrapped around 32 bits" if truth > 2**31 and value % 2**32 == truth % 2**32 else ""


@effect("memory_info")
def memory_info(trial: Trial) -> None:
    size, early = large_of(trial), trial.calls[0] <= 2
    judges: list[Callable[[Trial, int, Callable[[], None]], str]] = [_falls]
    if early:
        judges.append(_is_what_can_be_allocated)
    for judge in (*judges, _counts_others, _is_not_limited):
        wrong = in_time(partial(judge, trial, size))
        trial.expect(not wrong, wrong)


def _falls(trial: Trial, size: int, pause: Callable[[], None]) -> str:
    """What is taken from the driver is no longer free."""
    trial.own("empty_cache")
    pause()
    found = trial.call(trial.index)
    told = repr(found)
    wrong = _plausible(trial, found)
    before, own_before = found.free, (trial.own("mem_get_info", trial.index) or (None,))[0]
    block = trial.tensor(size)
    pause()
    found_now = trial.call(trial.index)
    wrong = wrong or _plausible(trial, found_now)
    trial.equal(found_now.total, found.total, "total, with a block live,")
    trial.equal(repr(found), told, "a record that was returned before another call")
    own_now = (trial.own("mem_get_info", trial.index) or (None,))[0]
    if own_before is not None and own_now is not None and own_before - own_now >= size // 2:
        if before is None or found_now.free is None:
            trial.expect(before is found_now.free, f"free is {before}, and {found_now.free} a call later")
        else:
            fall = before - found_now.free
            if not wrong and fall < size // 2:
                wrong = f"{size} bytes were taken from the driver, and free fell by {fall}"
    del block
    return wrong


def _counts_others(trial: Trial, size: int, pause: Callable[[], None]) -> str:
    """What others take is not free."""
    others = getattr(trial.ctx.probe, "others_take", None)
    if not callable(others):
        return ""
    pause()
    before = trial.call(trial.index)
    if before.free is None:
        return ""
    with others(trial.index, size):
        pause()
        fall = before.free - trial.call(trial.index).free
    return f"another process took {size} bytes, and free fell by {fall}" if fall < size // 2 else ""


def _is_not_limited(trial: Trial, size: int, pause: Callable[[], None]) -> str:
    """A limit of this process is none of the device."""
    if not (trial.has("set_memory_fraction") and trial.ctx.claims("memory_fraction")):
        return ""
    pause()
    before = trial.call(trial.index)
    trial.other("set_memory_fraction", trial.index, 0.5)
    pause()
    limited = trial.call(trial.index)
    trial.other("set_memory_fraction", trial.index, 1.0)
    trial.equal(limited.total, before.total, "total, with half of it allowed to this process,")
    if limited.free is None or before.free is None or before.total is None:
        return ""
    fall = before.free - limited.free
    told = f"with half of the total allowed to this process, free fell by {fall}"
    return told if fall > before.total // 8 else ""


def _plausible(trial: Trial, found: Any) -> str:
    """Fail where the figures cannot be; else, how they differ from torch's own."""
    for name in ("free", "total"):
        value = getattr(found, name)
        trial.expect(value is None or (type(value) is int and value >= 0), f"{name} is {value!r}")
    known = found.free is not None or found.total is not None
    trial.expect(
        not known or found.source in (None, *frozen_contract.INFO_SOURCES), f"source is {found.source!r}"
    )
    if found.free is not None and found.total is not None:
        trial.expect(found.free <= found.total, f"free is {found.free} and total is {found.total}")
    if trial.ctx.manifest.host and found.total is not None:
        told = within_the_machine(found.total)
        trial.expect(not told, f"total is {found.total}, and {told}")
    own = trial.own("mem_get_info", trial.index)
    if own is None or found.source != "runtime":
        return ""
    slack = max(ROUNDING, own[1] // 50)
    for name, value, truth in (("free", found.free, own[0]), ("total", found.total, own[1])):
        if value is not None and abs(value - truth) > slack:
            return f"{name} is {value}, and torch's own mem_get_info says {truth}"
    return ""


def _is_what_can_be_allocated(trial: Trial, size: int, pause: Callable[[], None]) -> str:
    """Sixteen parts of what is free fit, nearly, and no more."""
    if trial.ctx.manifest.host or trial.ctx.claims("unified_memory") or not trial.ctx.holds_tensors:
        return ""  # a host promises more than it has
    if trial.runtime is None and trial.has("empty_cache"):
        trial.other("empty_cache")
    trial.own("empty_cache")
    pause()
    free = trial.call(trial.index).free
    if free is None or free < 64 * MIB:
        return ""
    part = free // 16 // MIB * MIB
    kept: list[object] = []
    name = ""
    try:
        while len(kept) < 19:
            kept.append(trial.tensor(part))
    except Exception as error:
        name = type(error).__name__
    number = len(kept)
    kept.clear()
    trial.own("empty_cache")
    if number < 12:
        return f"{number} of 16 parts of what is free could be allocated, then {name}"
    return f"{number * part} bytes could be allocated, and free was {free}" if number >= 19 else ""


@effect("process_memory")
def process_memory(trial: Trial) -> None:
    if trial.ctx.probe.initialised() is False:
        tells_processes_apart(trial)
    roomy = (trial.own("mem_get_info", trial.index) or (0, 0))[0] > 8 * GIB and trial.calls[0] < 6
    size, pid = 5 * GIB if roomy else large_of(trial), os.getpid()
    trial.drop_cache()
    kept = trial.tensor(BLOCK).fill_(1)
    held_first, first = trial.ctx.probe.held(trial.index), _used(trial, trial.call(trial.index), pid)
    block = trial.tensor(size).fill_(1) if trial.runtime is None else trial.tensor(size)
    found = trial.call(trial.index)
    held, second = trial.ctx.probe.held(trial.index), _used(trial, found, pid)
    if isinstance(found, list):
        found.append(None)
        shared = None in trial.call(trial.index)
        trial.expect(not shared, "what was added to the list of the call before is in the list")
    trial.expect(
        (first is None) == (second is None), f"this process is listed with {first}, then with {second}"
    )
    if first is not None and second is not None and held is not None and held_first is not None:
        rise, truth = second - first, held - held_first
        told = f"what this process holds rose by {truth}, and what it is said to use by {rise}"
        trial.expect(abs(rise - truth) <= 2 * ROUNDING, told)
        told = f"this process holds {held}, and is said to use {second}"
        trial.expect(held - ROUNDING <= second <= _most_held(trial, trial.index) + 2 * GIB, told)
    _listed_everywhere(trial, pid)
    del kept, block


def _most_held(trial: Trial, index: int) -> int:
    """What the process holds on the device, and on all of them where they share one memory."""
    shared = trial.ctx.claims("unified_memory")
    return sum(trial.ctx.probe.held(one) or 0 for one in (range(trial.count) if shared else [index]))


def _listed_everywhere(trial: Trial, pid: int) -> None:
    """Where it holds memory on several devices, this process is listed on all of them, or on none."""
    kept = [trial.tensor(BLOCK * (1 + index), index).fill_(1) for index in range(min(trial.count, 3))]
    listed = {index: _used(trial, trial.ctx.raw_hook(trial.hook)(index), pid) for index in range(len(kept))}
    known = {index: used for index, used in listed.items() if used is not None}
    absent = sorted(listed.keys() - known.keys())
    trial.expect(
        not known or not absent,
        f"this process holds memory on devices {sorted(listed)}, and is not listed on {absent}",
    )
    for index, used in known.items():
        held, most = trial.ctx.probe.held(index), _most_held(trial, index)
        told = f"this process holds {held} on device {index}, and is said to use {used}"
        trial.expect(held is None or held - ROUNDING <= used <= most + 2 * GIB, told)
    del kept


def _used(trial: Trial, found: Any, pid: int) -> int | None:
    twice = [number for number, times in Counter(one.pid for one in found or ()).items() if times > 1]
    trial.expect(not twice, f"it lists process {twice[:1]} more than once")
    for one in found or ():
        trial.expect(type(one).__name__ == "ProcessMemory", f"it lists {one!r}")
        trial.expect(type(one.pid) is int and one.pid > 0, f"a pid is {one.pid!r}")
        trial.expect(one.used is None or (type(one.used) is int and one.used >= 0), f"used is {one.used!r}")
    return next((one.used for one in found or () if one.pid == pid), None)


def _adds_up(trial: Trial, segments: Any) -> None:
    """Segments in torch's own form are of this device, and as large as their blocks."""
    for one in segments:
        if not isinstance(one, dict):
            return
        place, blocks = one.get("device"), one.get("blocks")
        trial.expect(place in (None, trial.index), f"it lists a segment of device {place}")
        sizes = [block.get("size") for block in blocks] if isinstance(blocks, list) else []
        if sizes and all(type(size) is int for size in [*sizes, one.get("total_size")]):
            trial.equal(sum(sizes), one["total_size"], "the size of a segment's blocks")


def _in_a_pool(trial: Trial) -> object:
    """A block of a private pool, with its pool; ``None`` where there are none."""
    if not (trial.ctx.claims("memory_pools") and trial.has("memory_pool")):
        return None
    with trial.current(trial.index):
        pool = trial.other("memory_pool", trial.index)
        with pool.use():
            return pool, trial.tensor(BLOCK)


@effect("memory_snapshot")
def memory_snapshot(trial: Trial) -> None:
    if trial.ctx.probe.initialised() is False:
        trial.expect(not trial.call(trial.index), "nothing is initialised, and there are segments")
    kept = trial.tensor(BLOCK)
    first = trial.call(trial.index)
    told = repr(first)
    elsewhere = [trial.tensor(BLOCK + 4096, index) for index in trial.others]
    same = trial.call(trial.index)
    trial.expect(repr(same) == repr(first), "memory of another device changed it")
    block, private = trial.tensor(large_of(trial)), _in_a_pool(trial)
    second = trial.call(trial.index)
    trial.expect((first is None) == (second is None), "it is None in one of two calls")
    trial.expect(repr(first) == told, "the list of an earlier call was changed by a later one")
    if second is not None:
        unseen = trial.runtime is not None and repr(second) == repr(first)
        trial.expect(not unseen, "a new block did not change it")
        sizes = [one.get("total_size") for one in second if isinstance(one, dict)]
        held = trial.ctx.probe.held(trial.index)
        if held is not None and sizes and all(isinstance(size, int) for size in sizes):
            trial.equal(sum(sizes), held, "the size of all its segments")  # type: ignore[arg-type]
        _adds_up(trial, second)
        if isinstance(second, list):
            count = len(second)
            second.clear()
            trial.equal(len(trial.call(trial.index)), count, "after the list before was emptied, its length")
    del kept, elsewhere, block, private
    if second is not None and not trial.situation:
        _lists_all(trial)
    if second is not None and trial.runtime is not None and trial.has("record_memory_history"):
        _looks_on(trial)


def _lists_all(trial: Trial) -> None:
    """A long list is as whole as a short one: each block is one entry more."""
    if large_of(trial) < LARGE:
        return  # there is no room for many
    trial.drop_cache()
    counts: list[int] = []
    kept: list[object] = []
    for _ in range(_MANY):
        kept.append(trial.tensor(BLOCK))
        counts.append(leaves(trial.call(trial.index)))
    # The first ones may fill what others left free, which is listed already.
    later = itertools.islice(enumerate(itertools.pairwise(counts), 2), _MANY // 2, None)
    stopped = [number for number, (one, next) in later if next <= one]
    told = f"with {stopped[0]} blocks in use it tells no more than with one less" if stopped else ""
    trial.expect(trial.runtime is None or not stopped, told)


def _looks_on(trial: Trial) -> None:
    """Who looks while allocations are recorded does not stop that: it is told as much of the next one."""
    grown: dict[bool, tuple[int, int]] = {}
    for recording in (False, True):
        trial.other("record_memory_history", trial.index, recording)
        trial.drop_cache()
        kept = [trial.tensor(BLOCK)]  # before anybody looks
        before = leaves(trial.call(trial.index))
        kept.append(trial.tensor(BLOCK))
        grown[recording] = before, leaves(trial.call(trial.index)) - before
        del kept
    trial.other("record_memory_history", trial.index, False)
    (first, second), (first_on, second_on) = grown[False], grown[True]
    stopped = first_on > first and second_on <= second
    trial.expect(not stopped, "once it was called, allocations are recorded no more")
