"""Random operations on each pool by itself, each held against a plain model of dictionaries and sets."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable

import numpy as np
import torch

from devicekit.device import get_device
from devicekit.memory.attached_pages import PairedAllocator
from devicekit.memory.errors import PagesInUse
from devicekit.memory.mirror import TableMirror
from devicekit.memory.pages import PageAllocator
from devicekit.memory.rows import RequestTable
from devicekit.memory.state import StateLayout, StatePool, StateTensor
from tests.soak.drawing import Dice
from tests.soak.kv_pools import host_kv, prefixes

OPERATIONS = 100_000


def soak_pools(operations: int, seed: int) -> dict[str, dict[str, object]]:
    """So many operations on each pool; what each did, and the first thing that was wrong with it."""
    return {name: _soak(name, drive, operations, seed) for name, drive in POOLS.items()}


def _soak(name: str, drive: Callable[[int, Dice], int], operations: int, seed: int) -> dict[str, object]:
    began = time.monotonic()
    done: dict[str, object] = {"operations": operations, "seed": seed}
    try:
        done["audits"] = drive(operations, Dice(seed))
    except Exception as error:
        done["violation"] = f"{type(error).__name__}: {error}"
    done["seconds"] = round(time.monotonic() - began, 1)
    print(f"pool {name}: {done}", file=sys.stderr, flush=True)
    return done


def pages(operations: int, dice: Dice) -> int:
    """Take and give, one and many; save and restore, resize, reset; with checks and without."""
    audits = 0
    for checked in (False, True):
        pool, size = PageAllocator(500, checked=checked), 500
        held: list[list[int]] = []
        out: set[int] = set()
        for at in range(operations // 2):
            what = dice.number(0, 99)
            if what < 50:
                count = dice.pick((1, 1, 1, 2, 7, 40, 300))
                taken = _take(pool, count)
                assert (taken is None) == (count > size - len(out)), "a take that should fail, or should not"
                if taken is not None:
                    assert not out.intersection(taken), "a page was handed out twice"
                    out.update(taken)
                    held.append(taken)
            elif what < 97 and held:
                given = held.pop(dice.number(0, len(held) - 1))
                out.difference_update(given)
                pool.give_one(given[0]) if len(given) == 1 else pool.give(np.array(given, np.int32))
            elif what == 97:
                saved = pool.save()
                _take(pool, min(5, pool.available))
                pool.restore(saved)
            elif what == 98:
                new = dice.number(0, 900)
                above = sum(page > new for page in out)
                try:
                    pool.resize(new)
                except PagesInUse:
                    assert above, "a pool would not shrink, and every page above was free"
                else:
                    assert not above, "a pool shrank below pages that are out"
                    size = new
            elif dice.number(0, 9) == 0:
                pool.reset()
                held, out = [], set()
            assert pool.available == size - len(out), f"{pool.available} of {size} with {len(out)} out"
            if at % 100 == 0:
                audits += 1
                everything = sorted([*pool.free_pages().tolist(), *out])
                assert everything == list(range(1, size + 1)), "pages do not add up"
    return audits


def _take(pool: PageAllocator, count: int) -> list[int] | None:
    if count == 1:
        page = pool.take_one()
        return [page] if page else None
    taken = pool.take(count)
    return None if taken is None else np.frombuffer(taken, np.int32).tolist()


def rows(operations: int, dice: Dice) -> int:
    """Rows in and out, pages written and marked, two mirrors that follow at their own pace."""
    table, count, width = RequestTable(24, 128, checked=True), 24, 128
    model = np.zeros((count + 1, width), np.int32)
    generations = [0] * (count + 1)
    mirrors = [TableMirror(table, torch.device("cpu")) for _ in range(2)]
    out: list[int] = []
    audits = 0
    for at in range(operations):
        what = dice.number(0, 99)
        if what < 35:
            row = table.take_one()
            assert (row == 0) == (len(out) == count), "a row was refused, or handed out twice"
            if row:
                assert row not in out, "a row was handed out twice"
                generations[row] += 1
                out.append(row)
        elif what < 65 and out:
            table.give_one(out.pop(dice.number(0, len(out) - 1)))
        elif what < 90 and out:
            row, column, value = dice.pick(out), dice.number(0, width - 1), dice.number(1, 999)
            table.pages[row, column] = model[row, column] = value
            how = dice.number(0, 3)
            if how < 2:
                table.mark_cells_dirty(np.array([row * width + column]))
            else:
                table.mark_dirty(row, column + 1 if how == 2 else None)
        elif what < 98:
            mirror = dice.pick(mirrors)
            mirror.sync()
            audits += 1
            assert np.array_equal(mirror.tensor.numpy(), model), "a mirror is not what it mirrors"
        elif not dice.number(0, 9):
            table.reset()
            out = []
        assert table.available == count - len(out), "rows do not add up"
        assert not model[0].any(), "the padding row was written"
        if at % 100 == 0:
            assert sorted([*table.rows.free_pages().tolist(), *out]) == list(range(1, count + 1))
            assert table.generation.tolist() == generations, "a row was handed out and is not a new one"
    return audits


def states(operations: int, dice: Dice) -> int:
    """Slots in and out: clear when they are handed out, keeping what they hold until they go."""
    layout = StateLayout(
        (StateTensor(0, "conv", (3,), torch.float32), StateTensor(2, "sum", (2, 2), torch.int64))
    )
    pool = StatePool(get_device("cpu"), layout, 16, snapshots=8, checked=True)
    held: dict[int, int] = {}
    kept: dict[int, int] = {}  # what the snapshot slots behind the others hold
    views = [pool.tensor(one.layer, one.name) for one in layout.tensors]
    audits = 0
    for at in range(operations):
        what = dice.number(0, 99)
        if what < 40:
            slot = pool.take()
            assert bool(slot) == (len(held) < 16), "a slot too many, or too few"
            assert slot not in held, "a slot was handed out twice"
            if slot:
                assert _value(views, slot) == 0, "a slot was handed out with somebody's state in it"
                held[slot] = 0
        elif not held:
            continue
        elif what < 75:
            slot = dice.pick([*held])
            assert _value(views, slot) == held.pop(slot), "a slot lost what it held"
            pool.give(slot)
        elif what < 90:
            slot, value = dice.pick([*held]), dice.number(1, 99)
            for view in views:
                view[slot] = value
            held[slot] = value
        elif what < 94:
            slot, place = dice.pick([*held]), dice.number(17, 24)
            pool.copy(torch.tensor([slot]), torch.tensor([place]))
            kept[place] = held[slot]
        elif what < 98 and kept:
            slot, place = dice.pick([*held]), dice.pick([*kept])
            pool.copy(torch.tensor([place]), torch.tensor([slot]))
            held[slot] = kept[place]
        elif what == 98 and not dice.number(0, 9):
            pool.release()
            pool.resume()
            held, kept = dict.fromkeys(held, 0), {}
            views = [pool.tensor(one.layer, one.name) for one in layout.tensors]
        assert pool.available == 16 - len(held), "slots do not add up"
        if at % 100 == 0:
            audits += 1
            assert sorted([*pool.slots.free_pages().tolist(), *held]) == list(range(1, 17))
            assert not _value(views, 0), "the padding slot was written"
            everything = {**held, **kept}.items()
            assert all(_value(views, slot) == value for slot, value in everything), "a slot is another's"
    return audits


def _value(views: list[torch.Tensor], slot: int) -> int:
    found = {value for view in views for value in view[slot].reshape(-1).tolist()}
    assert len(found) == 1, f"slot {slot} holds {found}"
    return int(found.pop())


def windows(operations: int, dice: Dice) -> int:
    """Pages with a window page each, or without; kept by those who look at them, and taken from the idlest."""
    pages, count, audits = 40, 16, 0
    pool = PairedAllocator(pages, count)
    held: list[int] = []  # pages that are out
    pins: dict[int, int] = {}  # of those with a window page
    idle: list[int] = []  # pages whose window page nobody looks at, longest first
    for at in range(operations):
        what = dice.number(0, 99)
        if what < 30:
            wanted = dice.number(1, 4)
            bare = dice.number(0, 2) == 2
            taken = (pool.bare if bare else pool).take(wanted)
            short = 0 if bare else max(0, wanted - (count - len(pins)))
            assert (taken is None) == (wanted > pages - len(held) or short > len(idle)), (
                "refused, or given too much"
            )
            if taken is not None:
                new = np.frombuffer(taken, np.int32).tolist()
                held += new
                for page in idle[:short]:
                    del pins[page]
                del idle[:short]
                pins.update({} if bare else dict.fromkeys(new, 1))
        elif what < 50 and held:
            page = held.pop(dice.number(0, len(held) - 1))
            pool.give_one(page) if dice.number(0, 1) else pool.give(np.array([page], np.int32))
            pins.pop(page, None)
            idle = [one for one in idle if one != page]
        elif what < 70 and pins:
            page = dice.pick([*pins])
            pool.attached.pin(np.array([page], np.int32))
            idle = [one for one in idle if one != page]
            pins[page] += 1
        elif what < 99:
            kept = [page for page, number in pins.items() if number]
            if kept:
                page = dice.pick(kept)
                pool.attached.unpin(np.array([page], np.int32))
                pins[page] -= 1
                idle += [] if pins[page] else [page]
        elif dice.number(0, 9) == 9:
            pool.reset()
            held, pins, idle = [], {}, []
        assert pool.bare.available == pages - len(held), "pages do not add up"
        assert pool.attached.available == count - len(pins) + len(idle), "window pages do not add up"
        if at % 100 == 0:
            audits += 1
            bearing = {page: one for page, one in enumerate(pool.attached.of.tolist()) if one}
            assert bearing.keys() == pins.keys(), "window pages hang elsewhere"
            everything = sorted([*pool.attached.ids.free_pages().tolist(), *bearing.values()])
            assert everything == list(range(1, count + 1)), "a window page is lost, or in two places"
            assert {page: pool.attached.pins[page] for page in pins} == pins, "looked at by more, or fewer"
    return audits


POOLS: dict[str, Callable[[int, Dice], int]] = {
    "pages": pages,
    "rows": rows,
    "states": states,
    "windows": windows,
    "prefixes": prefixes,
    "host_kv": host_kv,
}
