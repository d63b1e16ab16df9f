"""Flush: what it forgets, when it may, who is told what, and that a refusal changes nothing."""

from __future__ import annotations

import math

import pytest

from devicekit.release import ReleasePoint
from devicekit.scheduling.messages import (
    Blocker,
    Continue,
    Flush,
    FlushReply,
    Pause,
    PauseMode,
    PauseReply,
    Refusal,
)
from devicekit.scheduling.state import Participant
from tests.hash_runner import expected
from tests.scheduling.conftest import MakeRig
from tests.scheduling.rig import Rig, Work


def assert_empty(rig: Rig) -> None:
    kv = rig.scheduler.state.kv
    assert kv.pages.available == kv.pages.num_pages
    assert kv.table.available == kv.table.num_rows
    assert kv.prefix is not None
    assert kv.prefix.total == 0


def test_an_idle_scheduler_forgets_everything_at_once(rig: Rig) -> None:
    work = Work()
    rig.scheduler.register(work.participant())
    rig.add(range(1, 30))
    rig.run()
    reply = rig.do(Flush("f"), FlushReply)
    assert reply.success
    assert reply.pages_freed == 9  # of 29 + 8 tokens, 36 are in full pages
    assert work.flushes == 1
    assert_empty(rig)


def test_after_a_flush_nothing_is_shared_with_what_came_before(rig: Rig) -> None:
    rig.add(range(1, 30))
    rig.run()
    rig.do(Flush("f"), FlushReply)
    request = rig.add(range(1, 30))
    rig.run()
    assert rig.last[request].cached_tokens == 0
    assert rig.outputs[request] == expected(range(1, 30), 8, rig.salt)


@pytest.mark.parametrize("timeout", [None, 0.0, -3.0])
def test_a_busy_scheduler_refuses_at_once_with_its_blockers_and_changes_nothing(
    rig: Rig, timeout: float | None
) -> None:
    for _ in range(10):
        rig.add(range(1, 20), 20)
    rig.step(4)
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)  # so that nothing but the flush can change anything
    work = Work(unfinished=3)
    rig.scheduler.register(work.participant())
    before = rig.snapshot()
    reply = rig.do(Flush("f", timeout), FlushReply)
    assert not reply.success
    assert reply.refusal is Refusal.BUSY
    assert reply.blockers == (Blocker("running", 8), Blocker("copies", 3))
    assert rig.snapshot() == before
    assert work.flushes == 0
    rig.do(Continue("c"), PauseReply)
    rig.run()


def test_waiting_requests_block_a_flush_unless_paused(new_rig: MakeRig) -> None:
    rig = new_rig(max_running=2)
    for number in range(3):
        rig.add(range(number, number + 8), 4)
    rig.step()
    assert Blocker("waiting", 1) in rig.do(Flush("busy"), FlushReply).blockers
    rig.do(Pause("p", PauseMode.RETRACT), PauseReply)
    assert rig.do(Flush("paused"), FlushReply).success
    assert_empty(rig)
    rig.do(Continue("c"), PauseReply)
    rig.run()


def test_a_deadline_on_a_paused_scheduler_ignores_waiting_requests_too(rig: Rig) -> None:
    rig.add(range(1, 9), 4)
    rig.step(2)
    rig.do(Pause("p", PauseMode.RETRACT), PauseReply)
    started = rig.clock.now()
    assert rig.do(Flush("f", 5.0), FlushReply).success
    assert rig.clock.now() == started
    rig.do(Continue("c"), PauseReply)
    rig.run()


def test_a_flush_with_a_deadline_waits_until_idle(rig: Rig) -> None:
    request = rig.add(range(1, 9), 6)
    rig.post(Flush("f", 5.0))
    rig.step(3)
    assert "f" not in rig.replies
    rig.run()
    rig.step()
    assert rig.replies["f"].success
    assert rig.outputs[request] == expected(range(1, 9), 6, rig.salt)
    assert_empty(rig)


def test_a_deadline_that_passes_says_what_stood_in_the_way(rig: Rig) -> None:
    rig.add(range(1, 9), 50)
    rig.post(Flush("f", 5.0))
    rig.step(2)
    rig.clock.sleep(4.9)
    rig.step()
    assert "f" not in rig.replies
    rig.clock.sleep(0.2)
    rig.step()
    reply = rig.replies["f"]
    assert (reply.success, reply.refusal) == (False, Refusal.TIMED_OUT)
    assert reply.blockers == (Blocker("running", 1),)
    assert reply.seconds == pytest.approx(5.1)
    rig.run()


def test_becoming_idle_late_but_before_anyone_looked_is_success(rig: Rig) -> None:
    work = Work(unfinished=1)
    rig.scheduler.register(work.participant())
    rig.post(Flush("f", 5.0))
    rig.step()
    work.finish()
    rig.clock.sleep(60)
    rig.step()
    assert rig.replies["f"].success


def test_several_pending_flushes_are_one_flush_and_each_is_answered(rig: Rig) -> None:
    work = Work()
    rig.scheduler.register(work.participant())
    rig.add(range(1, 30), 6)
    rig.post(Flush("a", 5.0, empty_cache=False))
    rig.post(Flush("b", 9.0, empty_cache=True))
    rig.post(Flush("c", 7.0, empty_cache=False))
    rig.run()
    rig.step()
    replies = [rig.replies[one] for one in "abc"]
    assert all(reply.success for reply in replies)
    assert work.flushes == 1
    assert rig.releases.counters[ReleasePoint.FLUSH].emptied == 1
    assert {reply.pages_freed for reply in replies if isinstance(reply, FlushReply)} == {8}


def test_flushes_that_wait_each_keep_their_own_deadline(rig: Rig) -> None:
    rig.add(range(1, 9), 50)
    rig.post(Flush("short", 1.0))
    rig.post(Flush("long", 100.0))
    rig.post(Flush("now"))
    rig.step(2)
    assert rig.replies["now"].refusal is Refusal.BUSY
    rig.clock.sleep(2)
    rig.step()
    assert rig.replies["short"].refusal is Refusal.TIMED_OUT
    assert "long" not in rig.replies
    rig.run()
    rig.step()
    assert rig.replies["long"].success


def test_copies_retire_while_paused_and_then_the_flush_goes_through(rig: Rig) -> None:
    work = Work(unfinished=2)
    rig.scheduler.register(work.participant())
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    assert rig.do(Flush("now"), FlushReply).blockers == (Blocker("copies", 2),)
    rig.post(Flush("later", 5.0))
    rig.step()
    assert "later" not in rig.replies
    work.finish()
    rig.step()
    assert rig.replies["later"].success
    assert work.retired == 2
    assert rig.scheduler.state.paused


def test_flushing_resets_what_participants_count(rig: Rig) -> None:
    counted = {"generated": 12}
    rig.scheduler.register(Participant("metrics", flush=lambda: counted.update(generated=0)))
    rig.add([1, 2, 3], 2)
    rig.step()
    rig.do(Flush("busy"), FlushReply)
    rig.run()
    assert counted == {"generated": 12}
    rig.do(Flush("idle"), FlushReply)
    assert counted == {"generated": 0}


def test_a_participant_that_cannot_flush_is_named_and_the_others_are_flushed(
    rig: Rig, caplog: pytest.LogCaptureFixture
) -> None:
    def broken() -> None:
        raise RuntimeError("no")

    work = Work()
    rig.scheduler.register(Participant("grammars", flush=broken))
    rig.scheduler.register(work.participant())
    rig.add(range(1, 30))
    rig.run()
    reply = rig.do(Flush("f"), FlushReply)
    assert (reply.success, reply.refusal, reply.failed) == (False, Refusal.FAILED, ("grammars",))
    assert reply.blockers == ()
    assert work.flushes == 1
    assert_empty(rig)
    assert "grammars could not flush" in caplog.text


@pytest.mark.parametrize("timeout", [math.nan, math.inf, -math.inf])
def test_a_timeout_that_is_no_number_of_seconds_is_invalid(rig: Rig, timeout: float) -> None:
    reply = rig.do(Flush("f", timeout), FlushReply)
    assert (reply.success, reply.refusal) == (False, Refusal.INVALID)


@pytest.mark.parametrize(("wish", "emptied"), [(None, 1), (True, 1), (False, 0)])
def test_a_flush_empties_the_allocator_unless_told_otherwise(
    rig: Rig, wish: bool | None, emptied: int
) -> None:
    reply = rig.do(Flush("f", empty_cache=wish), FlushReply)
    assert rig.releases.counters[ReleasePoint.FLUSH].emptied == emptied
    assert bool(reply.release) is bool(emptied)
