"""Random operations on the pools that share and copy keys and values: the prefix cache, and host memory."""

from __future__ import annotations

import numpy as np
import torch

from devicekit.device import get_device
from devicekit.memory.copies import Copy
from devicekit.memory.errors import CacheInUse
from devicekit.memory.eviction import POLICIES
from devicekit.memory.host_kv import HostKVPool
from devicekit.memory.kv import KVLayout, KVPool
from devicekit.memory.pages import PageAllocator
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.prefix_node import Node
from tests.scheduling.rig import LateCopier
from tests.soak.drawing import Dice


def prefixes(operations: int, dice: Dice) -> int:
    """Requests that find, keep, share, publish and leave prefixes, under every eviction policy."""
    audits = 0
    for policy in POLICIES:
        audits += _prefixes(operations // len(POLICIES), dice, policy)
    return audits


class _Reader:
    """A request on a prefix cache: what it holds, and the tokens of each of its pages."""

    def __init__(self, prompt: bytes, space: int, node: Node, row: bytes, shared: int) -> None:
        self.prompt, self.space, self.node, self.row, self.shared = prompt, space, node, row, shared


def _prefixes(operations: int, dice: Dice, policy: str) -> int:
    size, total, audits = 2, 200, 0
    pool = PageAllocator(total, checked=True)
    cache = PrefixCache(pool, size, policy=policy)
    contents: dict[int, tuple[int, bytes]] = {}  # of each page in use: whose tokens, all from the start
    readers: list[_Reader] = []
    for at in range(operations):
        what = dice.number(0, 99)
        if what < 45 or not readers:
            prompt = np.array([dice.number(0, 2) for _ in range(dice.number(1, 20))], np.int32).tobytes()
            _arrive(cache, pool, readers, contents, prompt, dice.number(0, 1))
        elif what < 85:
            reader = dice.pick(readers)
            done = cache.insert(
                reader.prompt, reader.row, reader.space, held=reader.node, priority=dice.number(0, 2)
            )
            for page, expected in zip(
                _ids(done.pages), _parts(reader.prompt, reader.space, size), strict=False
            ):
                assert contents[page] == expected, "a published prefix holds other tokens"
            assert not set(_ids(done.duplicates)) & set(_ids(done.pages)), "a page is cached and given back"
            pool.give(done.duplicates)
            reader.row = done.pages + reader.row[len(done.pages) :]
            reader.shared, reader.node = len(done.pages), done.node
            if what < 70:
                _leave(cache, pool, readers, reader)
        elif what < 94:
            _leave(cache, pool, readers, dice.pick(readers))
        elif what < 98:
            wanted, there = dice.number(0, 9), cache.evictable
            assert cache.evict(wanted) == min(wanted, there), "more or less was evicted than there was"
        else:
            protected = cache.protected
            try:
                cache.reset()
            except CacheInUse:
                assert protected, "a cache that nobody uses would not be reset"
            else:
                assert not protected, "a cache in use was reset"
                assert not cache.total, "a cache that was reset is not empty"
        owned = sum(len(one.row) - one.shared for one in readers) // 4
        assert pool.available + cache.evictable + cache.protected + owned == total, "pages do not add up"
        assert readers or not cache.protected, "a prefix is kept for nobody"
        if at % 100 == 0:
            audits += 1
            cached = [page for node in cache.nodes() for page in _ids(node.pages)]
            mine = [page for one in readers for page in _ids(one.row[one.shared :])]
            assert sorted([*pool.free_pages().tolist(), *cached, *mine]) == list(range(1, total + 1))
            locked = {page for node in cache.nodes() if node.locks for page in _ids(node.pages)}
            assert all(locked.issuperset(_ids(one.row[: one.shared])) for one in readers), (
                "unlocked too early"
            )
    return audits


def _arrive(
    cache: PrefixCache,
    pool: PageAllocator,
    readers: list[_Reader],
    contents: dict[int, tuple[int, bytes]],
    prompt: bytes,
    space: int,
) -> None:
    parts = _parts(prompt, space, cache.page_size)
    match = cache.match(prompt[:-4], space)
    found = _ids(match.pages)
    assert [contents[page] for page in found] == parts[: len(found)], (
        "a prefix was found that holds other tokens"
    )
    cache.lock(match.node)
    missing = len(parts) - len(found)
    if missing > pool.available:
        cache.evict(missing - pool.available)
    own = pool.take(missing)
    if own is None:
        cache.unlock(match.node)
        return
    contents.update(zip(_ids(own), parts[len(found) :], strict=True))
    readers.append(_Reader(prompt, space, match.node, match.pages + own, len(match.pages)))


def _leave(cache: PrefixCache, pool: PageAllocator, readers: list[_Reader], reader: _Reader) -> None:
    readers.remove(reader)
    pool.give(reader.row[reader.shared :])
    cache.unlock(reader.node)


def _parts(prompt: bytes, space: int, size: int) -> list[tuple[int, bytes]]:
    """For each page of a prompt, all tokens up to its end."""
    return [(space, prompt[: at + size * 4]) for at in range(0, len(prompt), size * 4)]


def host_kv(operations: int, dice: Dice) -> int:
    """Pages to the host and back by copies that drag: what arrives is what was sent, wherever it lay."""
    device = get_device("cpu")
    layout = KVLayout(num_layers=2, num_kv_heads=1, key_dim=2, value_dim=1, dtype=torch.int32)
    pool, copier = KVPool(device, layout, 24, 2), LateCopier()
    host = HostKVPool(device, pool, 40, copier=copier)
    cells = [rows.view(torch.int32) for rows in pool.page_rows()]
    kept: dict[int, int] = {}  # by host page: the value that was sent there
    busy: list[tuple[Copy, bytes]] = []  # copies to the host, and the pages that they fill
    audits = 0
    for _ in range(operations):
        what = dice.number(0, 99)
        count = dice.number(1, 4)
        source = np.array(_some(dice, range(1, 25), count), np.int32)
        if what < 45:
            target = host.pages.take(count)
            if target is None:
                continue
            for page, theirs in zip(source.tolist(), _ids(target), strict=True):
                kept[theirs] = value = dice.number(1, 1 << 20)
                for cell in cells:
                    cell[page] = value
            copy = host.store(source.tobytes(), target, "")
            busy.append((copy, target))
            copier.finish(0)  # it has read its pages, and nobody was told
            for cell in cells:
                cell[torch.from_numpy(source).long()] = -1
        elif what < 75 and len(kept) >= count:
            theirs = np.array(_some(dice, [*kept], count), np.int32)
            copy = host.load(theirs.tobytes(), source.tobytes(), "")
            for page, value in zip(source.tolist(), [kept[one] for one in theirs.tolist()], strict=True):
                audits += 1
                assert all(bool((cell[page] == value).all()) for cell in cells), "a page came back as another"
        elif what < 85:
            copier.finish(dice.pick((1, 2, None)))
        elif busy and busy[0][0].done():
            _, pages_back = busy.pop(0)
            for page in _ids(pages_back):
                del kept[page]
            host.pages.give(pages_back)
        elif busy and not dice.number(0, 9):
            busy[-1][0].wait()
            assert all(copy.done() for copy, _ in busy), "a copy is waited for, and earlier ones are not done"
        assert host.pages.in_use == len(kept), "host pages do not add up"
        assert not any(bool(cell[0, 0]) for cell in cells), "the padding was written"
    return audits


def _some(dice: Dice, choices: range | list[int], count: int) -> list[int]:
    """So many of these, all different."""
    found: dict[int, None] = {}
    while len(found) < count:
        found[dice.pick(choices)] = None
    return [*found]


def _ids(pages: bytes) -> list[int]:
    found: list[int] = np.frombuffer(pages, np.int32).tolist()
    return found
