"""The order in which requests run, and that nobody waits for ever."""

from __future__ import annotations

import random
from collections.abc import Callable, Hashable, Iterator

import numpy as np
import pytest

from devicekit.contract.errors import ConfigurationError
from devicekit.device import Device
from devicekit.scheduling.messages import Abort, Continue, Pause, PauseMode
from devicekit.scheduling.request import Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from devicekit.scheduling.waiting import HEAD_START, POLICIES, WaitingQueue
from tests.hash_runner import HashRunner
from tests.seeds import drawn_seed

SEED = drawn_seed("DEVICEKIT_WAITING_SEED")
WINDOW = 8  # instead of the real one, which would take many more requests to leave


def request(arrival: int, priority: int = 0, length: int = 10) -> Request:
    made = Request(f"r{arrival}", np.ones(length, np.int32), priority=priority)
    made.arrival = arrival
    return made


def take_first(queue: WaitingQueue | NaiveQueue) -> Request:
    first = queue.first()
    assert first is not None
    queue.remove(first)
    return first


def order(queue: WaitingQueue) -> list[int]:
    queue.arrange()
    return [one.arrival for one in queue]


def test_first_come_is_first_served_and_the_retracted_return_to_their_place() -> None:
    queue = WaitingQueue("fcfs")
    for arrival in (2, 5, 3):
        queue.add(request(arrival, priority=9))
    assert order(queue) == [2, 3, 5]
    taken = take_first(queue)
    queue.add(request(7))
    queue.add(taken)
    assert order(queue) == [2, 3, 5, 7]


def test_higher_priority_goes_first() -> None:
    queue = WaitingQueue("priority")
    for arrival, priority in ((1, 0), (2, 3), (3, -1), (4, 3)):
        queue.add(request(arrival, priority))
    assert order(queue) == [2, 4, 1, 3]


def test_what_is_cached_goes_first() -> None:
    queue = WaitingQueue("longest_prefix", lambda one: {1: 0, 2: 9, 3: 4}[one.arrival])
    for arrival in (1, 2, 3):
        queue.add(request(arrival))
    assert order(queue) == [2, 3, 1]


def test_the_order_follows_the_cache_each_time_that_it_has_changed_and_no_other_time() -> None:
    chance = random.Random(SEED)
    cached, version, looks = dict.fromkeys(range(1, 6), 0), [0], [0]

    def look(one: Request) -> int:
        looks[0] += 1
        return cached[one.arrival]

    queue = WaitingQueue("longest_prefix", look, lambda: version[0])
    for arrival in cached:
        queue.add(request(arrival))
    for _ in range(30):
        changed = chance.random() < 0.5
        if changed:
            cached.update((at, chance.randrange(100)) for at in cached)
            version[0] += 1
        else:
            order(queue)
        before = looks[0]
        assert order(queue) == sorted(cached, key=lambda at: (-cached[at], at))
        assert (looks[0] > before) == changed


@pytest.mark.parametrize("policy", ["priority", "longest_prefix"])
def test_a_request_is_overtaken_only_a_bounded_number_of_times(policy: str) -> None:
    """The unluckiest request of all against an endless stream of luckier ones."""
    queue = WaitingQueue(policy, lambda one: 0 if one.arrival == 1 else 10)
    queue.add(request(1))
    overtaken = 0
    for arrival in range(2, 10 * HEAD_START):
        queue.add(request(arrival, priority=1))
        queue.arrange()
        if take_first(queue).arrival == 1:
            break
        overtaken += 1
    assert 0 < overtaken <= HEAD_START


def test_any_request_can_be_taken_out() -> None:
    rng = random.Random(1)
    queue = WaitingQueue("priority")
    waiting = [request(arrival, rng.randrange(3)) for arrival in range(50)]
    for one in waiting:
        queue.add(one)
    gone = waiting[::3]
    for one in gone:
        queue.remove(one)
    assert len(queue) == len(waiting) - len(gone)
    assert not {one.arrival for one in gone} & set(order(queue))


def test_an_unknown_policy_is_named_with_those_there_are() -> None:
    with pytest.raises(ConfigurationError, match="'fcfs', 'priority', 'longest_prefix', not 'lifo'"):
        WaitingQueue("lifo")


class NaiveQueue:
    """The rules and nothing else: everyone is looked at, every time."""

    def __init__(
        self,
        policy: str = "fcfs",
        cached_tokens: Callable[[Request], int] = lambda request: 0,
        cache_version: Callable[[], Hashable] = object,
    ) -> None:
        self._policy, self._cached_tokens = policy, cached_tokens
        self._waiting: list[Request] = []
        self._round: list[Request] = []

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Request]:
        return iter(self._round)

    def add(self, request: Request) -> None:
        self._waiting.append(request)

    def arrange(self) -> None:
        came = sorted(self._waiting, key=lambda one: one.arrival)
        place: dict[str, float] = {one.id: one.arrival for one in came}
        if self._policy == "priority":
            place = {one.id: one.arrival - one.priority * HEAD_START for one in came}
        elif self._policy == "longest_prefix":
            for one in came[:WINDOW]:
                place[one.id] -= self._cached_tokens(one) / one.total * HEAD_START
        self._round = sorted(came, key=lambda one: (place[one.id], one.arrival))

    def first(self) -> Request | None:
        if not self._waiting:
            return None
        if not self._round:
            self.arrange()
        return self._round[0]

    def remove(self, request: Request) -> None:
        self._waiting.remove(request)
        self._round = [one for one in self._round if one is not request]


@pytest.fixture
def _short_window(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("devicekit.scheduling.waiting._WINDOW", WINDOW)


@pytest.mark.usefixtures("_short_window")
@pytest.mark.parametrize("tells_version", [True, False])
@pytest.mark.parametrize("policy", POLICIES)
def test_whatever_comes_and_goes_the_order_is_that_of_the_rules(policy: str, tells_version: bool) -> None:
    print("seed", SEED)
    rng = random.Random(SEED)
    for _ in range(60):
        cached: dict[int, int] = {}
        version = [0]

        def look(one: Request, cached: dict[int, int] = cached) -> int:
            return cached.get(one.arrival, 0)

        queue = WaitingQueue(policy, look, *([lambda version=version: version[0]] if tells_version else []))
        naive = NaiveQueue(policy, look)
        arrivals, running = 0, list[Request]()
        for _ in range(rng.randint(5, 120)):
            deed = rng.random()
            if deed < 0.45:
                for _ in range(rng.randint(1, rng.choice((5, 5, 5, 5, 200)))):
                    arrivals += 1
                    one = request(arrivals, rng.randint(-2, 2))
                    for each in (queue, naive):
                        each.add(one)
            elif deed < 0.6 and len(queue):
                count = (
                    rng.choice((1, 1, 1, len(queue), len(queue) - 1)) or 1
                )  # one goes, or nearly all give up
                for one in rng.sample(sorted(queue, key=lambda each: each.arrival), count):
                    for each in (queue, naive):
                        each.remove(one)
            elif deed < 0.7 and running:
                one = running.pop(rng.randrange(len(running)))
                for each in (queue, naive):
                    each.add(one)
            elif deed < 0.8:
                version[0] += 1
                cached.update((rng.randint(1, arrivals + 1), rng.randint(0, 9)) for _ in range(4))
            else:
                queue.arrange()
                naive.arrange()
                assert [one.arrival for one in queue] == [one.arrival for one in naive]
                for _ in range(min(len(queue), rng.randint(0, 4))):
                    assert queue.first() is naive.first()
                    running.append(take_first(queue))
                    take_first(naive)
            assert len(queue) == len(naive)


def _play(device: Device, policy: str, seed: int) -> list[object]:
    """What starts in every step, and what comes out, of requests that come, end, and are aborted and retracted."""
    rng = random.Random(seed)
    runner = HashRunner(device, num_pages=48, page_size=4)
    limits = SchedulerLimits(
        num_pages=48, page_size=4, max_running=6, max_batch_tokens=48, policy=policy, conservativeness=0.05
    )
    scheduler = Scheduler(runner, device, limits)
    shared = [[rng.randrange(1, 97) for _ in range(16)] for _ in range(3)]
    played: list[object] = []
    for step in range(150):
        for _ in range(rng.choice((0, 0, 1, 3)) if step < 100 else 0):
            prompt = [*rng.choice(shared)[: rng.choice((0, 8, 16))], *(rng.randrange(97) for _ in range(4))]
            params = SamplingParams(max_new_tokens=rng.randint(1, 20), temperature=0.0)
            scheduler.add(Request(f"{step}-{rng.random()}", np.array(prompt), params, rng.randint(-1, 1)))
        if rng.random() < 0.15 and scheduler.state.requests:
            scheduler.post(Abort(f"abort {step}", request_id=rng.choice(list(scheduler.state.requests))))
        if rng.random() < 0.05:
            scheduler.post(Pause(f"pause {step}", PauseMode.RETRACT))
            scheduler.post(Continue(f"continue {step}"))
        before = {one.id for one in (*scheduler.state.running.requests, *scheduler.state.prefilling)}
        outputs = scheduler.step().outputs
        after = [one.id for one in (*scheduler.state.running.requests, *scheduler.state.prefilling)]
        bare = [(one.id, one.tokens, one.finish, one.retractions) for one in outputs]
        played.append(([one for one in after if one not in before], bare))
    return played


@pytest.mark.usefixtures("_short_window")
@pytest.mark.parametrize("policy", POLICIES)
def test_requests_start_in_the_order_of_the_rules(
    policy: str, device: Device, monkeypatch: pytest.MonkeyPatch
) -> None:
    print("seed", SEED)
    for seed in range(SEED, SEED + 6):
        played = _play(device, policy, seed)
        with monkeypatch.context() as patch:
            patch.setattr("devicekit.scheduling.scheduler.WaitingQueue", NaiveQueue)
            assert played == _play(device, policy, seed)
