"""What must hold of an engine whenever nobody is in the middle of anything.

The accounts are kept here anew, id by id and in plain Python, and not by the engine's own audit.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from devicekit.memory.pages import PagePool
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.prefix_node import Node
from devicekit.scheduling.kv_cache import (
    KVCacheManager,
    RecurrentStateManager,
    StateSnapshotManager,
    WindowPagesManager,
)
from devicekit.scheduling.request import Request
from devicekit.weights.occupation import MemoryTag
from tests.soak.shadow import may_run
from tests.soak.world import World


def check(world: World) -> None:
    """Note in `World.wrong` every law that does not hold."""
    state = world.state
    for one in state.running.requests:
        state.running.settle(one)
    holders = [*state.running.requests, *state.prefilling]
    _requests(world, holders)
    locked = _pages(world, holders)
    _ids("rows", state.kv.table.rows, [one.row for one in holders], world.wrong)
    for layer in state.kv.layers:
        if isinstance(layer, RecurrentStateManager):
            _ids("state slots", layer.slots, [int(layer.of[one.row]) for one in holders], world.wrong)
    _copies(world, locked)
    _blockers(world)
    _state(world)
    _releases(world)
    if world.calm and not world.make.simulated:
        _padding(world)


def _requests(world: World, holders: list[Request]) -> None:
    """Each request is in one place, and all that have not ended are there."""
    state = world.state
    places = [one.id for one in (*holders, *state.waiting)]
    if sorted(places) != sorted(state.requests):
        world.wrong.append(f"requests are in {places}, of {list(state.requests)}")
    asked = {identity for identity, book in world.books.items() if book.finish is None} - world.sent
    # These are told in the next step.
    asked -= {one.id for one in state.requests.outputs if one.finish is not None}
    if asked != state.requests.keys():
        world.wrong.append(f"in flight are {sorted(state.requests)}, and asked for {sorted(asked)}")
    for one in state.requests.values():
        if one.num_output != len(world.books[one.id].tokens) - world.books[one.id].prompt:
            world.wrong.append(f"{one.id} has {one.num_output} tokens, other than were made for it")


def _pages(world: World, holders: list[Request]) -> set[int]:
    """Every page has one owner, and what a request shares is cached and locked. Answers the locked pages."""
    kv, prefix = world.state.kv, world.state.kv.prefix
    cached, locked, loose = _cached(prefix, world.wrong) if prefix is not None else ([], set(), 0)
    owned: list[int] = []
    sharers = 0
    for one in holders:
        row = kv.table.pages[one.row, : one.num_pages].tolist()
        owned += row[one.dropped_pages or one.cached_pages :]
        if one.dropped_pages:
            if any(row[: one.dropped_pages]):
                world.wrong.append(f"{one.id} still names pages that it gave back")
            continue
        sharers += 1
        if not locked.issuperset(row[: one.cached_pages]):
            world.wrong.append(f"{one.id} shares pages that nobody keeps for it")
    _ids("pages", kv.pages, [*owned, *cached], world.wrong)
    for layer in kv.layers:
        if isinstance(layer, WindowPagesManager | StateSnapshotManager):
            _attached(kv, layer, holders, world.wrong)
    copies = 0 if world.tier is None else len(world.tier.copies)
    if loose > sharers + copies:
        world.wrong.append(f"{loose} prefixes are locked, by {sharers} requests and {copies} copies")
    return locked


def _attached(
    kv: KVCacheManager,
    layer: WindowPagesManager | StateSnapshotManager,
    holders: list[Request],
    wrong: list[str],
) -> None:
    """Window pages, or snapshots of states: each hangs on one page that somebody has, or is free.

    It is kept by those who look at it, and by no others.
    """
    attached = layer.windows if isinstance(layer, WindowPagesManager) else layer.snapshots
    bearing = {page: one for page, one in enumerate(attached.of.tolist()) if one}
    _ids("attachments", attached.ids, bearing.values(), wrong)
    if dead := bearing.keys() & kv.pages.free_pages().tolist():
        wrong.append(f"something hangs on pages {dead}, which are free")
    pins = Counter(page for one in holders for page in layer.pinned(one).tolist())
    kept = {page: pins for page, pins in enumerate(attached.pins.tolist()) if pins}
    if kept != pins or not pins.keys() <= bearing.keys():
        wrong.append(f"what hangs on pages is kept as {kept}, and looked at as {dict(pins)}")
    idle = sum(page not in pins for page in bearing)
    if attached.idle != idle:
        wrong.append(f"{idle} attachments are idle, not {attached.idle}")


def _cached(cache: PrefixCache, wrong: list[str]) -> tuple[list[int], set[int], int]:
    """Pages in a prefix cache, those of them that are locked, and how many prefixes somebody has locked."""
    pages: list[int] = []
    locked: set[int] = set()
    holders = 0
    for node in cache.nodes():
        mine = memoryview(node.pages).cast("i").tolist()
        pages += mine
        below = sum(child.locks > 0 for child in node.children.values())
        if node.locks:
            locked.update(mine)
            holders += node.locks - below
        if node.locks < below or not _filed(node, cache.page_size):
            wrong.append(f"a prefix of {len(mine)} pages is misfiled, or has too few locks")
    if (cache.protected, cache.total) != (len(locked), len(pages)):
        wrong.append(f"{len(locked)} of {len(pages)} cached pages are locked, not {cache.protected}")
    return pages, locked, holders


def _filed(node: Node, page_size: int) -> bool:
    parent, width = node.parent, page_size * 4
    return (
        parent is not None
        and parent.children.get(node.key[:width]) is node
        and len(node.key) == len(node.pages) * page_size > 0
        and (node.queue is None) == (node.locks > 0)
    )


def _ids(name: str, pool: PagePool, held: Iterable[int], wrong: list[str]) -> None:
    """What is free and what is held are all ids there are, each once; 0 is none of them."""
    held = [*held]
    if sorted([*pool.free_pages().tolist(), *held]) != list(range(1, pool.num_pages + 1)):
        wrong.append(
            f"{name} do not add up: {pool.available} free and {sorted(held)} held of {pool.num_pages}"
        )
    if pool.available != pool.num_pages - len(held):
        wrong.append(f"{name} are miscounted: {pool.available} of {pool.num_pages}, and {len(held)} are held")


def _copies(world: World, locked: set[int]) -> None:
    """What is being copied is locked at both ends; and every host page has one owner."""
    tier, host = world.tier, world.host
    if tier is None or host is None:
        return
    cached, kept, loose = _cached(tier.tree, world.wrong)
    _ids("host pages", host.pages, cached, world.wrong)
    copies = tier.copies
    if loose > len(copies):
        world.wrong.append(f"{loose} prefixes are locked on the host, by {len(copies)} copies")
    for one in host.under_way(copies):
        if not kept.issuperset(one.host) or not locked.issuperset(one.device):
            world.wrong.append(f"pages {one} are being copied and nobody keeps them")


def _blockers(world: World) -> None:
    """Whatever is in the way is named, with how much of it there is, and nothing else is."""
    state = world.state
    expected = {
        "running": len(state.running),
        "prefilling": len(state.prefilling),
        "waiting": len(state.waiting) if may_run(state) and not state.gate.closed_by else 0,
        "host_copies": 0 if world.tier is None else len(world.tier.copies),
        world.work.name: world.work.unfinished + world.work.finished,
    }
    found = {one.name: one.count for one in state.blockers()}
    if found != {name: count for name, count in expected.items() if count}:
        world.wrong.append(f"blockers are {found}, and should be {expected}")


def _state(world: World) -> None:
    state, posted = world.state, world.posted
    if state.paused != bool(state.gate.epoch % 2):
        world.wrong.append(f"paused is {state.paused} in epoch {state.gate.epoch}")
    if (state.gate.paused_at is None) == state.paused:
        world.wrong.append(f"paused since {state.gate.paused_at}, and paused is {state.paused}")
    if strangers := {one for one in state.gate.closed_by if one.split("/")[0] not in posted}:
        world.wrong.append(f"{strangers} keep requests out and wait for nothing")
    if not state.healthy and not world.lost:
        world.wrong.append("the device was declared lost, and is not")
    if state.kv.unbalanced is not None:
        world.wrong.append(f"the engine's own audit found {state.kv.unbalanced}")
    if ("weight update" in state.gate.holds) != world.session:
        world.wrong.append(
            f"a session of updates is open: {world.session}, and held back is by {state.gate.holds}"
        )
    released = world.control.occupation.released - {MemoryTag.GRAPHS}
    if ("memory" in state.gate.holds) != bool(released):
        world.wrong.append(f"released are {released}, and held back is generation by {state.gate.holds}")


def _releases(world: World) -> None:
    """What a release point says it gave back is what is missing, and never less than nothing."""
    ledger = world.releases.ledger
    for at in range(world.entries, len(ledger)):
        entry = ledger[at]
        if entry.reserved_before is None or entry.reserved_after is None:
            continue
        world.seen["releases_counted"] += 1
        if not 0 <= (entry.released or 0) == entry.reserved_before - entry.reserved_after:
            world.wrong.append(f"a release that gave nothing back: {entry}")
    world.entries = len(ledger)


def _padding(world: World) -> None:
    """Slot 0 is nobody's: it stays zero."""
    pool = world.runner.pool
    if MemoryTag.KV_CACHE in world.control.occupation.released:
        return
    for layer in range(pool.layout.num_layers):
        if int(pool.key(layer)[0]) or int(pool.value(layer)[0]):
            world.wrong.append("somebody has written to the padding")
