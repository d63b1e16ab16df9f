"""The prefix cache against a model that knows, page by page, what is cached, locked and evicted next."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from devicekit.memory.audit import audit
from devicekit.memory.errors import CacheInUse
from devicekit.memory.events import BlocksRemoved, BlocksStored, CacheEvent
from devicekit.memory.eviction import POLICIES
from devicekit.memory.pages import PageAllocator
from devicekit.memory.prefix import PrefixCache
from devicekit.memory.prefix_node import Node
from devicekit.memory.prefix_records import Insertion
from tests.seeds import drawn_seed

Int32 = npt.NDArray[np.int32]


def ids(pages: bytes) -> list[int]:
    return [int(page) for page in np.frombuffer(pages, np.int32)]


@dataclass
class Cached:
    """One page of a cached prefix."""

    page: int
    rank: int
    used: int  # when it was last matched, inserted or released
    locks: int = 0


@dataclass
class Running:
    prompt: Int32
    namespace: int
    held: Node
    held_length: int  # pages locked
    row: bytes
    shared: int  # bytes of row
    priority: int


Key = tuple[int, bytes]


WHAT = ("all", "tail", "pages")


def share(cache: PrefixCache, request: Running, what: str) -> Insertion:
    """Publish all that a request has, its tail behind what is shared already, or the whole pages of that."""
    if what == "all":
        return cache.insert(
            request.prompt, request.row, request.namespace, held=request.held, priority=request.priority
        )
    begin, end = request.shared // 4 * cache.page_size, len(request.prompt)
    if what == "pages":
        end -= end % cache.page_size
    return cache.extend(
        request.held,
        request.prompt[begin:end],
        request.row[request.shared : None if what == "tail" else end // cache.page_size * 4],
        request.namespace,
        priority=request.priority,
    )


class CacheMachine(RuleBasedStateMachine):
    """Requests come and go; a model knows page by page what is cached, locked, and evicted next."""

    @initialize(
        policy=st.sampled_from(sorted(POLICIES)),
        page_size=st.integers(1, 3),
        num_pages=st.integers(4, 40),
        listened=st.booleans(),
    )
    def build(self, policy: str, page_size: int, num_pages: int, listened: bool) -> None:
        self.pool = PageAllocator(num_pages, checked=True)
        self.cache = PrefixCache(self.pool, page_size, policy=policy)
        self.policy, self.page_size = policy, page_size
        self.model: dict[Key, Cached] = {}
        self.running: list[Running] = []
        self.clock = self.turn = 0
        self.router: set[bytes] = set()
        self.listened = listened
        if listened:
            self.cache.attach(self.listen)

    def listen(self, event: CacheEvent) -> None:
        if isinstance(event, BlocksStored):
            assert event.parent is None or event.parent in self.router
            assert not self.router & set(event.hashes)
            assert len(event.tokens) == len(event.hashes) * self.page_size * 4
            self.router |= set(event.hashes)
        elif isinstance(event, BlocksRemoved):
            assert self.router >= set(event.hashes)
            self.router -= set(event.hashes)
        else:
            self.router.clear()

    # The model

    def path(self, prompt: Int32, namespace: int) -> list[Key]:
        step = self.page_size
        return [(namespace, prompt[:at].tobytes()) for at in range(step, len(prompt) + 1, step)]

    def known(self, prompt: Int32, namespace: int) -> list[Key]:
        return [key for key in self.path(prompt, namespace) if key in self.model]

    def use(self, keys: list[Key]) -> None:
        self.clock += 1
        for key in keys:
            self.model[key].used = self.clock

    def model_match(self, prompt: Int32, namespace: int) -> list[Key]:
        keys = self.known(prompt, namespace)
        for key in keys:
            entry = self.model[key]
            entry.rank = {"lfu": entry.rank + 1, "slru": 1}.get(self.policy, entry.rank)
        self.use(keys)
        return keys

    def model_lock(self, keys: list[Key], by: int) -> None:
        for key in keys:
            self.model[key].locks += by
        if by < 0:
            self.use([key for key in keys if not self.model[key].locks])

    def model_insert(self, prompt: Int32, namespace: int, pages: list[int], priority: int) -> None:
        keys = self.path(prompt, namespace)
        added = any(key not in self.model for key in keys)
        self.turn += 1
        rank = {"lfu": 1, "fifo": self.turn if added else 0, "priority": priority}.get(self.policy, 0)
        for key, page in zip(keys, pages, strict=True):
            entry = self.model.setdefault(key, Cached(page, rank, 0))
            entry.rank = max(entry.rank, rank)
        self.use(keys)

    def model_evict(self, count: int) -> list[int]:
        gone: list[int] = []
        for _ in range(count):
            width = self.page_size * 4
            parents = {(namespace, key[:-width]) for namespace, key in self.model}
            leaves = [key for key, entry in self.model.items() if not entry.locks and key not in parents]
            if not leaves:
                break
            victim = min(leaves, key=lambda key: (self.model[key].rank, self.model[key].used))
            gone.append(self.model.pop(victim).page)
        return gone

    # What happens

    prompts = st.lists(st.integers(0, 2), min_size=1, max_size=14).map(lambda t: np.array(t, np.int32))

    @rule(prompt=prompts, namespace=st.integers(0, 1), priority=st.integers(0, 2))
    def admit(self, prompt: Int32, namespace: int, priority: int) -> None:
        match = self.cache.match(prompt[:-1], namespace)
        keys = self.model_match(prompt[:-1], namespace)
        assert ids(match.pages) == [self.model[key].page for key in keys]
        assert match.tokens == len(keys) * self.page_size
        self.cache.lock(match.node)
        self.model_lock(keys, 1)
        missing = -(-len(prompt) // self.page_size) - len(keys)
        own = self.pool.take(missing)
        if own is None:
            short = missing - self.pool.available
            assert self.cache.evict(short) == len(self.model_evict(short))
            own = self.pool.take(missing)
        if own is None:
            self.cache.unlock(match.node)
            self.model_lock(keys, -1)
            return
        row = match.pages + own
        self.running.append(
            Running(prompt, namespace, match.node, len(keys), row, len(match.pages), priority)
        )

    @rule(prompt=prompts, namespace=st.integers(0, 1), priority=st.integers(0, 2))
    def insert_unlocked(self, prompt: Int32, namespace: int, priority: int) -> None:
        keys = self.path(prompt, namespace)
        own = self.pool.take(len(keys))
        if own is None or not keys:
            return
        known = [self.model[key].page for key in self.known(prompt, namespace)]
        done = self.cache.insert(prompt, own, namespace, priority=priority)
        assert ids(done.pages) == known + ids(own)[len(known) :]
        assert done.duplicates == own[: len(known) * 4]
        self.pool.give(done.duplicates)
        self.model_insert(prompt, namespace, ids(done.pages), priority)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 9), finish=st.booleans(), what=st.sampled_from(WHAT))
    def publish(self, which: int, finish: bool, what: str) -> None:
        request = self.running[which % len(self.running)]
        whole = len(request.prompt) // self.page_size
        expected = [self.model.get(key) for key in self.path(request.prompt, request.namespace)]
        mine = ids(request.row)[:whole]
        theirs = [page if entry is None else entry.page for entry, page in zip(expected, mine, strict=True)]
        done = share(self.cache, request, what)
        shared = 0 if what == "all" else request.shared
        assert request.row[:shared] + done.pages == np.array(theirs, np.int32).tobytes()
        assert ids(done.duplicates) == [
            page for page, other in zip(mine, theirs, strict=True) if page != other
        ]
        self.pool.give(done.duplicates)
        shared += len(done.pages)
        request.row = request.row[: shared - len(done.pages)] + done.pages + request.row[shared:]
        request.shared, request.held = shared, done.node
        if whole:
            self.model_insert(request.prompt, request.namespace, theirs, request.priority)
        keys = self.path(request.prompt, request.namespace)
        self.model_lock(keys[request.held_length :], 1)
        request.held_length = whole
        if finish:
            self.leave(request)

    @precondition(lambda self: self.running)
    @rule(which=st.integers(0, 9))
    def abort(self, which: int) -> None:
        self.leave(self.running[which % len(self.running)])

    def leave(self, request: Running) -> None:
        self.running = [other for other in self.running if other is not request]
        self.pool.give(request.row[request.shared :])
        self.cache.unlock(request.held)
        self.model_lock(self.path(request.prompt, request.namespace)[: request.held_length], -1)

    @rule(prompt=prompts, namespace=st.integers(0, 2))
    def look(self, prompt: Int32, namespace: int) -> None:
        assert self.cache.peek(prompt, namespace) == len(self.known(prompt, namespace)) * self.page_size
        assert self.cache.match(prompt, namespace).tokens == self.cache.peek(prompt, namespace)
        self.model_match(prompt, namespace)

    @rule(count=st.integers(0, 8))
    def evict(self, count: int) -> None:
        gone = self.model_evict(count)
        assert self.cache.evict(count) == len(gone)
        assert set(gone) <= set(self.pool.free_pages().tolist()), "other pages were evicted"

    @rule()
    def reset(self) -> None:
        if any(entry.locks for entry in self.model.values()):
            with pytest.raises(CacheInUse):
                self.cache.reset()
        else:
            self.cache.reset()
            self.model.clear()

    @invariant()
    def conserves(self) -> None:
        owned = b"".join(request.row[request.shared :] for request in self.running)
        found = audit(self.pool, owned=owned, cache=self.cache)
        assert found.balanced, found
        assert self.cache.total == len(self.model)
        assert len(self.router) == (self.cache.total if self.listened else 0)
        for namespace, key in self.model:
            assert self.cache.peek(key, namespace) == len(key) // 4
        assert self.cache.protected == sum(entry.locks > 0 for entry in self.model.values())


TestCacheMachine = CacheMachine.TestCase
TestCacheMachine.settings = settings(max_examples=120, stateful_step_count=40)


@pytest.mark.parametrize("listened", [False, True])
@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_a_long_history_is_what_the_model_says(policy: str, listened: bool) -> None:
    rng = random.Random(f"{policy} {listened}")
    for _ in range(20):
        machine = CacheMachine()
        machine.build(policy, rng.randint(1, 3), rng.choice((12, 60, 200)), listened)
        for _ in range(120):
            prompt = np.array(rng.choices(range(rng.choice((2, 3))), k=rng.randint(1, 24)), np.int32)
            action, namespace, priority = rng.random(), rng.randrange(2), rng.randrange(3)
            if action < 0.35:
                machine.admit(prompt, namespace, priority)
            elif action < 0.75 and machine.running:
                machine.publish(rng.randrange(10), rng.random() < 0.5, rng.choice(WHAT))
            elif action < 0.8 and machine.running:
                machine.abort(rng.randrange(10))
            elif action < 0.9:
                machine.evict(rng.randrange(9))
            elif action < 0.99:
                machine.insert_unlocked(prompt, namespace, priority)
            else:
                machine.reset()
            machine.conserves()


@pytest.mark.parametrize("policy", sorted(POLICIES))
def test_twenty_thousand_random_requests_conserve(policy: str) -> None:
    rng = np.random.default_rng(11)
    pool = PageAllocator(400)
    cache = PrefixCache(pool, 2, policy=policy)
    running: list[Running] = []
    owned = 0
    draws = rng.integers(0, 1000, (20_000, 2)).tolist()
    texts = rng.integers(0, 3, 40_000).astype(np.int32)
    for turn, (kind, size) in enumerate(draws):
        if kind < 500 or not running:
            prompt = texts[turn : turn + 1 + size % 24]
            match = cache.match(prompt[:-1], kind % 2)
            cache.lock(match.node)
            missing = -(-len(prompt) // 2) - len(match.pages) // 4
            cache.evict(missing - pool.available)
            own = pool.take(missing)
            if own is None:
                cache.unlock(match.node)
            else:
                owned += missing
                row = match.pages + own
                running.append(Running(prompt, kind % 2, match.node, 0, row, len(match.pages), size % 3))
        else:
            request = running.pop(size % len(running))
            row, shared, node = request.row, request.shared, request.held
            if kind < 900:
                done = share(cache, request, "tail" if turn % 2 else "pages")
                pool.give(done.duplicates)
                owned -= len(done.pages) // 4
                row = row[:shared] + done.pages + row[shared + len(done.pages) :]
                shared, node = shared + len(done.pages), done.node
            pool.give(row[shared:])
            owned -= (len(row) - shared) // 4
            cache.unlock(node)
        assert pool.available + cache.evictable + cache.protected + owned == 400
        if turn % 500 == 0:
            held = b"".join(request.row[request.shared :] for request in running)
            assert audit(pool, owned=held, cache=cache).balanced


def test_the_version_tells_every_change_of_what_is_cached_and_nothing_else() -> None:
    rng = random.Random(drawn_seed("PREFIX_SEED"))
    pool = PageAllocator(40)
    cache = PrefixCache(pool, 2)
    before = cache.version
    for _ in range(400):
        total = cache.total
        tokens = np.array([rng.randrange(3) for _ in range(2 * rng.randrange(1, 8))], np.int32)
        match rng.randrange(8):
            case 0:
                cache.reset()
                pool.reset()
            case 1 | 2:
                cache.evict(rng.randrange(1, 4))
            case 3 | 4:
                cache.match(tokens)
                cache.peek(tokens)
            case _:
                known = cache.match(tokens).pages
                if (pages := pool.take(len(tokens) // 2 - len(known) // 4)) is not None:
                    cache.insert(tokens, known + pages)
        came, went = cache.version
        assert came - went == cache.total
        assert came >= before[0]
        assert went >= before[1]
        assert (cache.version == before) == (cache.total == total)
        before = cache.version
    assert before[0] >= before[1] > 0
