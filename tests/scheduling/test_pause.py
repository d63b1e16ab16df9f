"""Pause and continue: what each mode does to requests, that both are states, and how a pause ends by itself."""

from __future__ import annotations

import math

import pytest

from devicekit.release import ReleasePoint
from devicekit.scheduling.messages import Continue, Flush, FlushReply, Pause, PauseMode, PauseReply, Refusal
from devicekit.scheduling.request import FinishKind
from tests.hash_runner import expected
from tests.scheduling.conftest import MakeRig
from tests.scheduling.rig import Rig


def busy(rig: Rig, requests: int = 4, tokens: int = 12) -> dict[str, list[int]]:
    """Requests of several lengths, the last of them still waiting or in the middle of its prompt."""
    prompts = {
        rig.add(range(n + 1, n + 12 * n + 5), tokens): list(range(n + 1, n + 12 * n + 5))
        for n in range(requests)
    }
    rig.step(2)
    return prompts


def assert_right(rig: Rig, prompts: dict[str, list[int]], tokens: int = 12) -> None:
    for identity, prompt in prompts.items():
        assert rig.outputs[identity] == expected(prompt, tokens, rig.salt), identity


def test_in_place_leaves_every_request_and_its_cache_as_it_is(new_rig: MakeRig) -> None:
    rig = new_rig(max_batch_tokens=24)
    prompts = busy(rig)
    before = rig.snapshot()
    reply = rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    assert (reply.changed, reply.aborted, reply.retracted) == (True, 0, 0)
    rig.step(5)
    after = rig.snapshot()
    for key in ("running", "prefilling", "waiting", "available", "rows"):
        assert after[key] == before[key]
    rig.do(Continue("c"), PauseReply)
    rig.run()
    assert_right(rig, prompts)


def test_no_forward_pass_runs_while_paused(rig: Rig) -> None:
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    rig.add([1, 2, 3])
    steps = rig.runner.steps
    assert rig.step(10).ran == 0
    assert rig.runner.steps == steps
    rig.do(Continue("c"), PauseReply)
    rig.run()
    assert rig.runner.steps > steps


def test_retract_takes_all_cache_and_loses_no_token(new_rig: MakeRig) -> None:
    rig = new_rig(max_batch_tokens=24)
    prompts = busy(rig)
    state = rig.scheduler.state
    holding = len(state.running) + len(state.prefilling)
    assert state.prefilling, "one request should be in the middle of its prompt"
    reply = rig.do(Pause("p", PauseMode.RETRACT), PauseReply)
    assert reply.retracted == holding
    assert len(state.waiting) == len(prompts)
    assert state.kv.table.available == 8
    assert rig.scheduler.blockers() == ()
    rig.do(Continue("c"), PauseReply)
    rig.run()
    assert_right(rig, prompts)
    assert sum(rig.last[one].retractions for one in prompts) == holding


def test_retracted_requests_run_again_before_later_ones(new_rig: MakeRig) -> None:
    rig = new_rig(max_running=1)
    first = rig.add([1, 2, 3], 8)
    second = rig.add([4, 5, 6], 8)
    rig.step(3)
    rig.do(Pause("p", PauseMode.RETRACT), PauseReply)
    assert [one.id for one in rig.scheduler.state.waiting] == [first, second]
    rig.do(Continue("c"), PauseReply)
    rig.run()


def test_abort_ends_everything_at_once_and_counts(new_rig: MakeRig) -> None:
    rig = new_rig(max_batch_tokens=24, max_running=2)
    prompts = busy(rig)
    reply = rig.do(Pause("p"), PauseReply)
    assert reply.aborted == len(prompts)
    assert {rig.finishes[one].kind for one in prompts} == {FinishKind.ABORT}
    assert rig.scheduler.blockers() == ()
    rig.check()
    # What it had generated is reported, not lost.
    for identity, prompt in prompts.items():
        got = rig.outputs[identity]
        assert got == expected(prompt, len(got), rig.salt)


def test_pausing_twice_is_pausing_once(rig: Rig) -> None:
    first = rig.do(Pause("a", PauseMode.IN_PLACE), PauseReply)
    second = rig.do(Pause("b", PauseMode.IN_PLACE), PauseReply)
    assert (first.changed, second.changed) == (True, False)
    assert first.epoch == second.epoch == 1


def test_a_stronger_mode_takes_effect_in_a_pause(rig: Rig) -> None:
    busy(rig, 2)
    rig.do(Pause("a", PauseMode.IN_PLACE), PauseReply)
    reply = rig.do(Pause("b", PauseMode.RETRACT), PauseReply)
    assert (reply.changed, reply.retracted) == (False, 2)
    assert rig.do(Pause("c", PauseMode.ABORT), PauseReply).aborted == 2


def test_continuing_twice_is_continuing_once_and_empties_once(rig: Rig) -> None:
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    first = rig.do(Continue("a"), PauseReply)
    second = rig.do(Continue("b"), PauseReply)
    assert (first.changed, second.changed) == (True, False)
    assert first.epoch == second.epoch == 2
    assert rig.releases.counters[ReleasePoint.CONTINUE].emptied == 1


@pytest.mark.parametrize(("wish", "emptied"), [(None, True), (True, True), (False, False)])
def test_continue_empties_by_default_and_reports_bytes(rig: Rig, wish: bool | None, emptied: bool) -> None:
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    rig.clock.sleep(2.5)
    reply = rig.do(Continue("c", wish), PauseReply)
    assert reply.release is not None
    assert reply.release.emptied is emptied
    assert reply.paused_seconds == pytest.approx(2.5)
    # The host has no caching allocator to count: unknown, not zero.
    assert (reply.release.reserved_before, reply.release.reserved_after) == (None, None)


def test_a_pause_can_end_by_itself(rig: Rig, caplog: pytest.LogCaptureFixture) -> None:
    request = rig.add([1, 2, 3], 6)
    rig.step(2)
    rig.do(Pause("p", PauseMode.IN_PLACE, continue_after=30.0), PauseReply)
    rig.clock.sleep(29)
    rig.step(3)
    assert request not in rig.finishes
    rig.clock.sleep(1)
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 6, rig.salt)
    assert not rig.scheduler.state.paused
    assert "paused for 30.0 s" in caplog.text


def test_continuing_in_time_disarms_the_watchdog(rig: Rig) -> None:
    rig.do(Pause("a", PauseMode.IN_PLACE, continue_after=30.0), PauseReply)
    rig.do(Continue("c"), PauseReply)
    rig.do(Pause("b", PauseMode.IN_PLACE), PauseReply)
    rig.clock.sleep(1000)
    rig.step()
    assert rig.scheduler.state.paused


def test_the_last_to_pause_says_for_how_long(rig: Rig) -> None:
    rig.do(Pause("a", PauseMode.IN_PLACE, continue_after=30.0), PauseReply)
    rig.do(Pause("b", PauseMode.IN_PLACE), PauseReply)
    rig.clock.sleep(1000)
    rig.step()
    assert rig.scheduler.state.paused
    rig.do(Pause("c", PauseMode.IN_PLACE, continue_after=5.0), PauseReply)
    rig.clock.sleep(6)
    rig.step()
    assert not rig.scheduler.state.paused


@pytest.mark.parametrize("after", [0.0, -1.0, math.nan, math.inf])
def test_a_watchdog_needs_a_positive_number_of_seconds(rig: Rig, after: float) -> None:
    reply = rig.do(Pause("p", PauseMode.ABORT, continue_after=after), PauseReply)
    assert (reply.success, reply.refusal) == (False, Refusal.INVALID)
    assert not rig.scheduler.state.paused


def test_continue_is_refused_while_generation_could_not_run(rig: Rig) -> None:
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    rig.scheduler.state.gate.token("memory").hold("the weights are released")
    reply = rig.do(Continue("c"), PauseReply)
    assert (reply.success, reply.refusal) == (False, Refusal.CONFLICT)
    assert "the weights are released" in reply.message
    assert rig.scheduler.state.paused


def test_requests_that_come_during_a_pause_wait_and_then_run(rig: Rig) -> None:
    rig.do(Pause("p"), PauseReply)
    request = rig.add([7, 8, 9], 5)
    rig.step(3)
    assert not rig.outputs
    rig.do(Continue("c"), PauseReply)
    rig.run()
    assert rig.outputs[request] == expected([7, 8, 9], 5, rig.salt)


def test_a_pause_and_a_flush_in_one_message_batch_work_in_order(rig: Rig) -> None:
    prompts = busy(rig)
    rig.post(Pause("p", PauseMode.RETRACT))
    rig.post(Flush("f"))
    rig.post(Continue("c"))
    rig.step()
    assert all(rig.replies[one].success for one in "pfc")
    assert isinstance(rig.replies["f"], FlushReply)
    rig.run()
    assert_right(rig, prompts)


def test_deadlines_of_requests_pass_while_paused(rig: Rig) -> None:
    request = rig.add([1, 2], 5, timeout=3.0)
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    rig.clock.sleep(4)
    rig.step()
    assert rig.finishes[request].kind is FinishKind.ABORT
