"""Limits, private pools and the record of allocations."""

from __future__ import annotations

import gc
import re
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from devicekit_conformance.context import MIB
from devicekit_conformance.effects import effect
from devicekit_conformance.lasting import Lasting
from devicekit_conformance.measures import BLOCK, ROUNDING
from devicekit_conformance.trial import Trial

if TYPE_CHECKING:
    import torch


def total_of(trial: Trial, index: int) -> int | None:
    """Bytes that the device has, by torch's own count or the hook's; ``None`` where nobody says."""
    own = trial.own("mem_get_info", index)
    if own is not None:
        return int(own[1])
    return getattr(trial.other("memory_info", index), "total", None) if trial.has("memory_info") else None


@effect("set_memory_fraction")
def set_memory_fraction(trial: Trial) -> None:
    if not trial.ctx.claims("memory_fraction"):
        return
    total = total_of(trial, trial.index)
    if total is None:
        return
    trial.drop_cache()
    try:
        trial.call(trial.index, 0.5)
        trial.expect(
            fits(trial, trial.index, total * 2 // 5), "with half allowed, two fifths could not be allocated"
        )
        trial.expect(
            not fits(trial, trial.index, total * 3 // 5), "with half allowed, three fifths were allocated"
        )
        for road, world in _roads(trial):
            with world:
                room = fits(trial, trial.index, total * 3 // 5)
            trial.expect(not room, f"with half allowed, three fifths were allocated {road}")
        _counts_from_all(trial, total)
        for index in trial.others:
            theirs = total_of(trial, index)
            room = theirs is None or fits(trial, index, theirs * 3 // 5)
            trial.expect(room, f"it limits device {index} as well")
        _leaves_the_limits_of_others(trial)
        _counts_what_is_kept(trial, total)
        _counts_from_the_total(trial, total)
        _leaves_what_is_held(trial, total)
        for wrong in (-0.5, float("nan"), 1.5, "0.25", 1):
            _accepts_not(trial, wrong)
        trial.expect(
            not fits(trial, trial.index, total * 3 // 5), "a fraction that it refused changed the limit"
        )
        _nothing_is_allowed(trial, total)
        trial.call(trial.index, 0.125)
        trial.expect(
            not fits(trial, trial.index, total // 5), "with an eighth allowed, a fifth was allocated"
        )
    finally:
        trial.call(trial.index, 1.0)
    trial.expect(fits(trial, trial.index, total * 3 // 5), "with all allowed again, three fifths do not fit")


def _roads(trial: Trial) -> Iterator[tuple[str, AbstractContextManager[object]]]:
    """Where an allocation may come from: the limit is one for all of them."""
    stream = trial.new_stream()
    if stream is not None:
        yield "on another stream", trial.on(stream)
    if trial.ctx.claims("memory_pools") and trial.has("memory_pool"):
        yield "from a pool", trial.other("memory_pool", trial.index).use()


def _leaves_the_limits_of_others(trial: Trial) -> None:
    """A device has the limit that was set for it, however low, whatever is set for another one later."""
    for index in trial.others[:1]:
        theirs = total_of(trial, index)
        if theirs is None:
            continue
        trial.other(trial.hook, index, 0.25)
        trial.call(trial.index, 0.5)
        room = fits(trial, index, theirs * 2 // 5)
        trial.other(trial.hook, index, 1.0)
        trial.expect(not room, f"a limit of device {index} is gone once one was set for device {trial.index}")


def _counts_what_is_kept(trial: Trial, total: int) -> None:
    """What a pool keeps for itself is reserved, and counts like what is in use."""
    if not (trial.ctx.claims("memory_pools") and trial.has("memory_pool")):
        return
    pool: Any = trial.other("memory_pool", trial.index)
    with trial.current(trial.index), pool.use():
        kept = trial.tensor(total // 4 // MIB * MIB)
    del kept
    try:
        block: torch.Tensor | None = trial.tensor(total * 2 // 5 // MIB * MIB)
    except Exception:
        block = None
    held = trial.ctx.probe.held(trial.index)
    del block, pool
    gc.collect()
    trial.drop_cache()
    told = f"with half of {total} allowed, the device holds {held}"
    trial.expect(held is None or held <= total // 2 + ROUNDING, told)


def _counts_from_all(trial: Trial, total: int) -> None:
    """What other processes hold makes the limit no smaller."""
    others = getattr(trial.ctx.probe, "others_take", None)
    if not callable(others):
        return
    with others(trial.index, total * 2 // 5):
        trial.call(trial.index, 0.5)
        room = fits(trial, trial.index, total * 2 // 5)
    trial.expect(room, "with half allowed and two fifths taken by another process, two fifths do not fit")


def _counts_from_the_total(trial: Trial, total: int) -> None:
    """The limit is a part of all that there is, whatever is in use when it is set."""
    kept = trial.tensor(total // 4 // MIB * MIB)
    trial.call(trial.index, 0.5)
    trial.expect(
        fits(trial, trial.index, total // 6),
        "with half allowed and a quarter in use, another sixth could not be allocated",
    )
    trial.expect(
        not fits(trial, trial.index, total // 3),
        "with half allowed and a quarter in use, a third more was allocated",
    )
    del kept
    trial.drop_cache()


def _leaves_what_is_held(trial: Trial, total: int) -> None:
    """A limit below what is in use takes nothing away, and allows no more."""
    kept = trial.tensor(total // 4 // MIB * MIB)
    place = kept[-4096:].fill_(7)
    cached = trial.tensor(total // 16 // MIB * MIB)
    del cached
    before = trial.ctx.probe.held(trial.index)
    trial.call(trial.index, 0.125)
    after = trial.ctx.probe.held(trial.index)
    told = f"the device held {before} bytes, and {after} once less than that was allowed"
    trial.expect(before is None or after is None or before == after, told)
    trial.drop_cache()
    over = fits(trial, trial.index, total // 8)  # more than a segment that is in use may have room for
    trial.expect(not over, "with an eighth allowed and a quarter in use, an eighth more was allocated")
    trial.expect(bool((place.cpu() == 7).all()), "a limit below what is in use changed what it holds")
    trial.call(trial.index, 0.5)
    del kept, place
    trial.drop_cache()


def _nothing_is_allowed(trial: Trial, total: int) -> None:
    """0 is a limit like another, where it is one at all."""
    try:
        trial.ctx.raw_hook(trial.hook)(trial.index, 0.0)
    except Exception:
        return
    trial.expect(not fits(trial, trial.index, total // 8), "with nothing allowed, an eighth was allocated")


def _accepts_not(trial: Trial, wrong: object) -> None:
    try:
        trial.ctx.raw_hook(trial.hook)(trial.index, wrong)
    except Exception:
        return
    trial.fail(f"it accepted {wrong!r}")


def fits(trial: Trial, index: int, size: int) -> bool:
    """Whether a block of so many bytes can be allocated. It is freed, and the cache emptied."""
    try:
        block = trial.tensor(size // MIB * MIB, index)
    except Exception as error:
        if trial.has("classify_error"):
            kind = getattr(trial.other("classify_error", error), "value", None)
            trial.equal(kind, "out_of_memory", "what an allocation beyond the limit is taken for")
        return False
    finally:
        trial.drop_cache()
    del block
    trial.drop_cache()
    return True


@effect("record_memory_history")
def record_memory_history(trial: Trial) -> None:
    if not trial.has("memory_snapshot") or trial.runtime is None:
        trial.call(trial.index, False)
        return
    kept: list[object] = []
    details: dict[int, list[int]] = {}
    block = trial.tensor(BLOCK)
    if trial.other("memory_snapshot", trial.index) is None:  # nobody can see what it changes
        trial.call(trial.index, False)
        return
    del block
    for enabled in (False, True, True, False):  # started twice, it goes on
        trial.drop_cache()
        trial.call(trial.index, enabled)
        for index in range(trial.count):
            trial.other("memory_snapshot", index)  # who looks stops nothing
        kept += [trial.tensor(BLOCK + 4096 * len(kept), index) for index in range(trial.count)]
        for index in range(trial.count):
            details.setdefault(index, []).append(leaves(trial.other("memory_snapshot", index)))
        again = leaves(trial.other("memory_snapshot", trial.index))
        trial.equal(again, details[trial.index][-1], "how many facts a second snapshot holds")
    off, on, twice, again = details[trial.index]  # some vendors record on every device at once
    for grew, how in ((on - off, "on"), (twice - on, "started twice")):
        more = grew > again - twice
        trial.expect(more, f"a snapshot tells no more of an allocation with recording {how} than with it off")
    del kept


def leaves(value: Any) -> int:
    """How many single facts a snapshot holds. A text may hold several, or none."""
    if isinstance(value, str):
        return len(re.findall(r"[^\s,;|]+", value))
    if isinstance(value, Mapping):
        return sum(map(leaves, value.values()))
    if isinstance(value, (list, tuple)):
        return sum(map(leaves, value))
    return 1


@effect("allocator_settings")
def allocator_settings(trial: Trial) -> None:
    found = trial.call()
    if found is None:
        return
    for one in found:
        trial.expect(type(one).__name__ == "AllocatorSetting", f"it lists {one!r}")
        text = type(one.name) is str and one.name and type(one.value) is str
        trial.expect(text, f"it lists {one!r}, whose name and value are to be text")
        trial.expect(one.changeable in (True, False, None), f"changeable of {one.name} is {one.changeable!r}")
    names = [one.name for one in found]
    trial.expect(len(set(names)) == len(names), "it lists a setting twice")
    told = repr(list(found))
    if isinstance(found, list):
        found.clear()  # what is returned is the caller's
    trial.equal(repr(list(trial.call() or ())), told, "the second answer")


@effect("set_allocator_setting")
def set_allocator_setting(trial: Trial) -> None:
    if trial.runtime is not None:
        _refused(trial, "no_such_setting", "1", "does not exist")
    if not trial.has("allocator_settings"):
        return
    before = _settings(trial)
    for name, value in before.items():
        if _changeable(trial, name) and name[:-1] not in before:
            _refused(trial, name[:-1], value, "does not exist, though another's name begins so,")
    _sets_one_only(trial, before)
    elsewhere = ThreadPoolExecutor(1)
    elsewhere.submit(_settings, trial).result()  # a thread that looks before and after
    for name, value in before.items():
        changeable = _changeable(trial, name)
        if changeable is False:
            another = str(int(value) + 1) if value.isdigit() else value
            _refused(trial, name, another, "cannot be changed")
        if changeable is not True or not value.isdigit():
            continue
        more = [
            f"{value}{mark}{other}{sign}{before[other]}"
            for other in before
            for mark in ",; "
            for sign in ":="
        ]
        for unreadable in (f"{value}x", *_UNREADABLE, *more):
            _refused(trial, name, unreadable, "was given a value that cannot be read")
        wanted = _another(trial, name, value)
        expected = {**before, name: wanted}
        trial.equal(_settings(trial), expected, f"what the settings are once {name} was set to {wanted}")
        there = elsewhere.submit(_settings, trial).result()
        trial.equal(there, expected, f"what another thread is told once {name} was set to {wanted}")
        changed = {index: _allocates(trial, index) for index in range(trial.count)}
        trial.call(name, value)
        trial.equal(_settings(trial), before, f"what the settings are once {name} was set back")
        _of_every_device(trial, f"{name} was set from {wanted} to {value}", changed)
    elsewhere.shutdown()


_UNREADABLE = ("12abc", "abc12", "1 2", "--1", "")  # for a number, though parts of it may be one
_SIZES = (512, 300_000, 1_500_000, 3_000_000, 12_000_000, 24_000_000)  # which allocators serve differently


def _allocates(trial: Trial, index: int) -> list[object]:
    """How torch counts what blocks of several sizes take; nothing where parts of blocks in use may serve them."""
    if not isinstance(trial.own("memory_stats", index), dict):
        return []
    trial.drop_cache()
    kept: list[torch.Tensor] = []
    told: list[object] = []
    before = trial.own("memory_stats", index)
    if before.get("inactive_split_bytes.all.current"):
        return []
    for size in _SIZES:
        kept.append(trial.tensor(size, index))
        now = trial.own("memory_stats", index)
        told.append({name: now[name] - before.get(name, 0) for name in now if name.endswith(".current")})
    kept.clear()
    trial.drop_cache()
    return told


def _of_every_device(trial: Trial, what: str, before: dict[int, list[object]]) -> None:
    """A setting is the process's: what it changes on one device, it changes on all of them."""
    after = {index: _allocates(trial, index) for index in before}
    if any(_allocates(trial, index) != told for index, told in after.items()):
        return  # this allocator does not do the same each time
    alike = [index for index in before if before[index] and after[index]]
    changed = [index for index in alike if before[index] != after[index]]
    same = [index for index in alike if before[index] == after[index]]
    told = f"once {what}, device {changed[:1]} allocates otherwise, and device {same[:1]} as before"
    trial.expect(not (changed and same), told)


def _sets_one_only(trial: Trial, before: dict[str, str]) -> None:
    """Of two settings that are changed one after the other, each stays; so does what other hooks set."""
    lasting = Lasting(trial)
    can = [name for name, value in before.items() if value.isdigit() and _changeable(trial, name) is True]
    wanted = {name: _another(trial, name, before[name]) for name in can[:2]}
    told = f"once {' and '.join(wanted)} were set, the settings are"
    trial.equal(_settings(trial), {**before, **wanted}, told)
    for name in reversed(wanted):
        trial.call(name, before[name])
    lasting.check("after it")


def _settings(trial: Trial) -> dict[str, str]:
    return {one.name: one.value for one in trial.other("allocator_settings") or ()}


def _changeable(trial: Trial, name: str) -> bool | None:
    """Whether a setting can be changed now: what starts the allocator may fix it."""
    found = {one.name: one.changeable for one in trial.other("allocator_settings") or ()}
    return found.get(name)


def _another(trial: Trial, name: str, value: str) -> str:
    """Another value than the present one, or that one where the setting's own bounds allow no other."""
    for other in (str(int(value) * 2), str(int(value) // 2), str(int(value) + 1)):
        try:
            trial.ctx.raw_hook(trial.hook)(name, other)
        except ValueError:
            continue
        except Exception as error:
            trial.fail(
                f"{name} can be changed, and setting it to {other} raised {type(error).__name__}: {error}"
            )
        return other
    trial.call(name, value)
    return value


def _refused(trial: Trial, name: str, value: str, why: str) -> None:
    before = _settings(trial) if trial.has("allocator_settings") else {}
    try:
        trial.ctx.raw_hook(trial.hook)(name, value)
    except ValueError:
        now = _settings(trial) if trial.has("allocator_settings") else {}
        trial.equal(now, before, f"what the settings are once {name} was refused")
        return
    except Exception as error:
        trial.fail(f"a setting that {why} raised {type(error).__name__}, and not ValueError")
    trial.fail(f"a setting that {why} was accepted")
