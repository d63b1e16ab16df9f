"""What happens at the very instant, at the very count and under the very name."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from devicekit.scheduling.deadlines import Deadlines
from devicekit.scheduling.messages import (
    Blocker,
    Drain,
    Flush,
    FlushReply,
    Operation,
    Pause,
    PauseMode,
    PauseReply,
    Refusal,
    Reply,
    UpdateOutcome,
)
from devicekit.scheduling.request import FinishKind, Request, SamplingParams
from devicekit.weights.operations import BeginWeightUpdate, EndWeightUpdate, SessionReply
from devicekit.weights.session import UpdateSession
from tests.hash_runner import expected
from tests.scheduling.conftest import MakeRig
from tests.scheduling.rig import Rig, Work

_INSTANT = 2.0**-40  # seconds, and exact beside small numbers


@pytest.mark.parametrize("operation", [Flush("one", 5.0), Drain("one", 5.0)], ids=["flush", "drain"])
def test_an_operation_times_out_at_its_deadline_and_no_instant_before(rig: Rig, operation: Operation) -> None:
    rig.clock.time = 64.0
    rig.add([1, 2, 3], 30)
    rig.step(2)
    rig.post(operation)
    rig.step()
    rig.clock.time = 69.0 - _INSTANT
    rig.step()
    assert "one" not in rig.replies
    rig.clock.time = 69.0
    rig.step()
    assert rig.replies["one"].refusal is Refusal.TIMED_OUT


def test_a_pause_ends_by_itself_at_its_time_and_no_instant_before(rig: Rig) -> None:
    rig.clock.time = 64.0
    rig.do(Pause("p", PauseMode.IN_PLACE, continue_after=5.0), PauseReply)
    rig.clock.time = 69.0 - _INSTANT
    rig.step()
    assert rig.scheduler.state.paused
    rig.clock.time = 69.0
    rig.step()
    assert not rig.scheduler.state.paused


def test_a_request_ends_at_its_deadline_and_no_instant_before(rig: Rig) -> None:
    rig.clock.time = 64.0
    request = rig.add([1, 2, 3], 30, timeout=5.0)
    rig.step(2)
    rig.clock.time = 69.0 - _INSTANT
    rig.step()
    assert request not in rig.finishes
    rig.clock.time = 69.0
    rig.step()
    assert rig.finishes[request].kind is not FinishKind.LENGTH


def test_deadlines_expire_in_order_and_at_their_instant() -> None:
    deadlines = Deadlines()
    requests = [
        Request(str(number), np.array([1], np.int32), SamplingParams(max_new_tokens=1)) for number in range(3)
    ]
    for arrival, (request, due) in enumerate(zip(requests, (3.0, 1.0, 2.0), strict=True)):
        request.arrival = arrival
        deadlines.add(request, due)
    assert deadlines.next == 1.0
    assert deadlines.expired(1.0 - _INSTANT) == []
    assert deadlines.expired(2.0) == [requests[1], requests[2]]
    deadlines.discard(requests[0])
    assert (deadlines.next, len(deadlines)) == (None, 0)
    assert deadlines.expired(100.0) == []


def test_blockers_are_counted_each_under_its_own_name(new_rig: MakeRig) -> None:
    rig = new_rig(max_running=2, max_batch_tokens=8)
    work = Work("uploads", unfinished=5)
    rig.scheduler.register(work.participant())
    rig.scheduler.register(Work("idle").participant())
    rig.add([1, 2], 30)
    rig.step(2)
    rig.add(range(1, 40), 30)  # computed in several chunks
    rig.step()
    for _ in range(3):
        rig.add([5, 6], 30)
    reply = rig.do(Flush("f"), FlushReply)
    assert reply.blockers == (
        Blocker("running", 1),
        Blocker("prefilling", 1),
        Blocker("waiting", 3),
        Blocker("uploads", 5),
    )
    assert [str(one) for one in reply.blockers] == ["running=1", "prefilling=1", "waiting=3", "uploads=5"]
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    names = [one.name for one in rig.do(Flush("g"), FlushReply).blockers]
    assert names == ["running", "prefilling", "uploads"], "who waits does not block while paused"


@pytest.mark.parametrize("partial", [*itertools.product((False, True), repeat=3)])
def test_a_session_that_was_partial_once_stays_so(rig: Rig, partial: tuple[bool, bool, bool]) -> None:
    session = UpdateSession(rig.scheduler.state)
    reply = session.begin(BeginWeightUpdate("b"))()
    assert reply is not None
    assert reply.success
    for one in partial:
        session.failed(partial=one)
    ended = session.end(EndWeightUpdate("e"))
    assert isinstance(ended, SessionReply)
    assert ended.outcome is (UpdateOutcome.PARTIAL if any(partial) else UpdateOutcome.UNCHANGED)
    assert ended.failures == 3
    assert (ended.success, ended.refusal) == ((False, Refusal.FAILED) if any(partial) else (True, None))


def test_the_next_session_knows_nothing_of_the_last(rig: Rig) -> None:
    session = UpdateSession(rig.scheduler.state)
    session.begin(BeginWeightUpdate("b"))()
    session.failed(partial=True)
    session.end(EndWeightUpdate("e"))
    assert not session.open
    session.begin(BeginWeightUpdate("b2"))()
    ended: Reply = session.end(EndWeightUpdate("e2"))
    assert ended.success


@pytest.mark.parametrize("least", [0, 1, 2])
def test_a_stop_token_behind_the_least_length_ends_an_output(rig: Rig, least: int) -> None:
    tokens = expected([1, 2, 3], 8, rig.salt)
    stop = tokens[2]
    assert tokens.index(stop) == 2
    params = SamplingParams(max_new_tokens=8, temperature=0.0, stop_token_ids=(stop,), min_new_tokens=least)
    rig.scheduler.add(Request("r", np.array([1, 2, 3], np.int32), params))
    rig.run()
    assert rig.outputs["r"] == tokens[:3]


def test_cached_tokens_are_counted_up(rig: Rig) -> None:
    figures = rig.scheduler.state.requests.cache_figures
    before = (figures.prompt_tokens, figures.cached_tokens)
    for _ in range(2):
        rig.add(range(1, 33), 2)
        rig.run()
    assert figures.prompt_tokens - before[0] == 64
    assert 16 <= figures.cached_tokens - before[1] < 32


def test_what_is_cached_makes_room_for_a_request_and_no_more_than_it_has_to(new_rig: MakeRig) -> None:
    """Evicting for a newcomer leaves what runs its reserve, and the rest of the cache."""
    rig = new_rig(max_running=4)
    kv = rig.scheduler.state.kv
    total = kv.pages.num_pages
    size = kv.page_size
    rig.add(range(1, size * (total // 2)), 1)
    rig.run()
    cached = kv.prefix.evictable if kv.prefix is not None else 0
    assert cached > 0
    second = rig.add(range(1, 1 + size * (total - total // 2 - 2))[::-1], 1)
    rig.run()
    assert second in rig.finishes
    assert kv.prefix is not None
    rig.check()


def test_the_times_of_a_request_are_those_of_the_clock(rig: Rig) -> None:
    rig.clock.time = 64.0
    params = SamplingParams(max_new_tokens=3, temperature=0.0)
    rig.scheduler.add(Request("r", np.array([1, 2, 3], np.int32), params))
    ended = []
    for _ in range(10):
        rig.clock.sleep(2.0)
        ended += [one for one in rig.scheduler.step().outputs if one.finish is not None]
    [output] = ended
    assert output.times is not None
    assert (output.times.queued, output.times.first_token) == (2.0, 2.0)
    assert output.times.total > 2.0
