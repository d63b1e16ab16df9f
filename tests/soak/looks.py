"""Single things done between two steps, and what became of them: refusals, repetitions, emptying, measuring."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np

from devicekit.device import Device, available_memory
from devicekit.memory.prefix import PrefixCache
from devicekit.scheduling.messages import (
    Continue,
    Drain,
    Flush,
    FlushReply,
    Operation,
    Pause,
    PauseMode,
    Refusal,
    Reply,
    UpdateOutcome,
)
from devicekit.scheduling.verbs.transaction import Transaction
from devicekit.weights.occupation import MemoryTag
from devicekit.weights.operations import ReleaseMemory, ResumeMemory
from tests.soak.drawing import Draw
from tests.soak.stepping import begin, poll, step
from tests.soak.verbs import VERBS, identity
from tests.soak.world import World

Look = Callable[[World, Draw], bool]

_REFUSED = {Refusal.INVALID, Refusal.UNSUPPORTED, Refusal.BUSY, Refusal.CONFLICT}


def picture(world: World) -> dict[str, object]:
    """Everything that anybody could see of an engine without changing it."""
    state, kv = world.state, world.state.kv
    for one in state.running.requests:
        state.running.settle(one)
    tier = world.tier
    return {
        "requests": [
            (one.id, one.row, one.computed, one.total, one.num_pages, one.cached_pages, one.retractions)
            for one in (*state.running.requests, *state.prefilling, *state.waiting)
        ],
        "free": kv.pages.free_pages().tobytes(),
        "rows": kv.table.rows.free_pages().tobytes(),
        "tables": kv.table.pages.tobytes(),
        "cached": _tree(kv.prefix),
        "host": None if tier is None else (_tree(tier.tree), len(tier.copies), tier.counters.stored),
        "paused": (
            state.paused,
            state.gate.epoch,
            state.gate.continue_at,
            dict(state.gate.holds),
            set(state.gate.closed_by),
        ),
        "weights": (state.weight_version, state.requests.weights_epoch, world.control.store.untrusted),
        "released": world.control.occupation.released,
        "participants": (world.work.unfinished, world.work.finished, world.work.flushes),
        "emptied": {point: one.emptied for point, one in world.releases.counters.items()},
        "outputs": len(state.requests.outputs),
        "steps": world.runner.steps,
    }


def _tree(cache: PrefixCache | None) -> object:
    return None if cache is None else sorted((one.key, one.pages, one.locks) for one in cache.nodes())


def _contents(world: World) -> object:
    """Every byte of keys, values and weights."""
    released = world.control.occupation.released
    kept: list[bytes] = []
    if MemoryTag.KV_CACHE not in released:
        kept += [rows.cpu().numpy().tobytes() for rows in world.runner.pool.page_rows()]
    if MemoryTag.WEIGHTS not in released:
        for weight in world.runner.weights.values():
            kept.append(weight.detach().cpu().contiguous().view(-1).float().numpy().tobytes())
    return kept


def a_refusal_changes_nothing(world: World, draw: Draw) -> bool:
    """Whatever is refused has changed nothing that can be seen."""
    operation = draw.pick(VERBS)(world, draw)
    if getattr(operation, "abort_all_requests", False):
        operation = replace(operation, abort_all_requests=False)  # type: ignore[call-arg]
    before = picture(world)
    reply = begin(world, operation)
    if reply is None and not isinstance(operation, Transaction):  # whose first steps are done by now
        reply = poll(world, operation)
    changed = getattr(reply, "outcome", UpdateOutcome.UNCHANGED) is not UpdateOutcome.UNCHANGED
    if reply is not None and reply.refusal in _REFUSED and not changed:
        _same(world, before, f"{operation} was refused and something changed")
        world.seen[f"looked_at_{reply.refusal.value}"] += 1
    return True


def a_flush_that_comes_too_late_changes_nothing(world: World, draw: Draw) -> bool:
    if not world.state.blockers():
        return False
    before = picture(world)
    operation = Flush(identity(world), timeout=2.0)
    if begin(world, operation) is not None or poll(world, operation) is not None:
        world.wrong.append("a flush with a deadline did not wait for what is in its way")
        return True
    _same(world, before, "a flush that waits has changed something")
    world.clock.sleep(3.0)
    reply = poll(world, operation)
    if reply is None or reply.refusal is not Refusal.TIMED_OUT or not reply.blockers:
        world.wrong.append(f"a flush whose time was up was answered by {reply}")
    _same(world, before, "a flush that came too late has changed something")
    world.seen["flushes_too_late"] += 1
    return True


def a_flush_leaves_nothing_or_says_what_blocks(world: World, draw: Draw) -> bool:
    before, blockers = picture(world), world.state.blockers()
    reply = _now(world, Flush(identity(world)))
    if not isinstance(reply, FlushReply) or reply.blockers != blockers:
        world.wrong.append(f"a flush was answered by {reply}, with {blockers} in its way")
    elif blockers:
        _same(world, before, "a refused flush has changed something")
    return True


def states_are_entered_once(world: World, draw: Draw) -> bool:
    """Asking for the state that things are in already is success, and changes nothing."""
    if not world.calm:
        return False
    tags = tuple(tag.value for tag in MemoryTag if draw.number(0, 1) == 1)
    backup = draw.number(0, 1) == 1
    what = draw.pick(("pause", "continue", "release", "resume"))
    made: Callable[[], Operation] = {
        "pause": lambda: Pause(identity(world), PauseMode.IN_PLACE),
        "continue": lambda: Continue(identity(world)),
        "release": lambda: ReleaseMemory(identity(world), tags, backup),
        "resume": lambda: ResumeMemory(identity(world), tags),
    }[what]
    first = _now(world, made())
    if not first.success:
        return True
    before = picture(world)
    again = _now(world, made())
    changed = [one.changed for one in getattr(again, "regions", ())]
    if not again.success or getattr(again, "changed", False) or any(changed):
        world.wrong.append(f"{what} twice was answered by {again}")
    after = picture(world)
    if what == "release":  # a release point of its own is passed each time
        before["emptied"] = after["emptied"]
    if after != before:
        world.wrong.append(f"{what} twice is not {what}: {_differences(before, after)}")
    return True


def a_pause_ends_by_itself(world: World, draw: Draw) -> bool:
    """If it was asked to, nobody else has paused since, and nothing holds generation back."""
    if world.posted or world.sent:
        return False
    _now(world, Pause(identity(world), PauseMode.IN_PLACE, 2.0))
    world.clock.sleep(1.0)
    step(world)
    if not world.state.paused:
        world.wrong.append("a pause ended too early")
    world.clock.sleep(2.0)
    step(world)
    if world.state.paused and not world.state.gate.holds:
        world.wrong.append("a pause did not end by itself")
    return True


def a_drain_leaves_no_keys(world: World, draw: Draw) -> bool:
    """It is done when nobody holds KV, and then it is a pause."""
    state = world.state
    holders = len(state.running) + len(state.prefilling)
    operation = Drain(identity(world), 0.0)
    reply = begin(world, operation) or poll(world, operation)
    if reply is None or reply.success == bool(holders) or (reply.success and not state.paused):
        world.wrong.append(f"a drain with {holders} at work was answered by {reply}")
    return True


def emptying_changes_nothing(world: World, draw: Draw) -> bool:
    """Neither a tensor's content nor anything that is counted."""
    if not world.calm or (world.machine is None and draw.number(0, 3)):
        return False
    before, contents = picture(world), _contents(world)
    world.device.empty_cache()
    _same(world, before, "emptying the allocator's cache has changed something")
    same = zip(contents, _contents(world), strict=True)  # type: ignore[call-overload]
    if any(not np.array_equal(one, other) for one, other in same):
        world.wrong.append("emptying the allocator's cache has changed a tensor")
    return True


def measuring_changes_nothing(world: World, draw: Draw) -> bool:
    """Neither what is reserved, nor its peak, nor anything else."""
    if not world.calm or (world.machine is None and draw.number(0, 3)):
        return False
    before, stats = picture(world), world.device.memory_stats()
    _measure(world.device)
    world.scheduler.audit()
    world.scheduler.blockers()
    if world.device.memory_stats() != stats:
        world.wrong.append(f"measuring changed {stats} into {world.device.memory_stats()}")
    _same(world, before, "measuring has changed something")
    return True


def _measure(device: Device) -> None:
    device.memory_info()
    device.host_memory_stats()
    available_memory(device)


def _now(world: World, operation: Operation) -> Reply:
    reply = begin(world, operation)
    assert reply is not None, operation
    return reply


def _same(world: World, before: dict[str, object], what: str) -> None:
    after = picture(world)
    if after != before:
        world.wrong.append(f"{what}: {_differences(before, after)}")


def _differences(before: dict[str, object], after: dict[str, object]) -> str:
    changed = [(name, before[name], after[name]) for name in before if before[name] != after[name]]
    return str(changed)[:600]


LOOKS: tuple[Look, ...] = (
    *[a_refusal_changes_nothing] * 2,
    a_flush_that_comes_too_late_changes_nothing,
    a_flush_leaves_nothing_or_says_what_blocks,
    *[states_are_entered_once] * 2,
    a_pause_ends_by_itself,
    a_drain_leaves_no_keys,
    emptying_changes_nothing,
    measuring_changes_nothing,
)
# Where memory is counted byte by byte, looking at it is what may go wrong.
COUNTED_LOOKS: tuple[Look, ...] = (*LOOKS, *[emptying_changes_nothing, measuring_changes_nothing] * 6)
