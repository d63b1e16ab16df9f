"""Updates in two phases: prepared changes nothing, committed changes all; a fleet's member waits for it."""

from __future__ import annotations

from pathlib import Path

import pytest

from devicekit.engine import Engine, EngineConfig
from devicekit.scheduling.messages import Continue, Operation, PauseMode, Reply, UpdateOutcome, UpdateReply
from devicekit.scheduling.request import SamplingParams
from devicekit.weights import (
    ChecksumReply,
    ChecksumWeights,
    ClaimForFleet,
    CommitWeights,
    DiscardWeights,
    EndClaim,
    HoldForFleet,
    HoldMode,
    JoinFleet,
    PreparedReply,
    PrepareWeights,
)

PROMPT = "Once upon"


@pytest.fixture
def engine(checkpoints: tuple[Path, Path]) -> Engine:
    return Engine.open(checkpoints[0], "cpu", config=EngineConfig(kv_tokens=2048))


def said(engine: Engine) -> str:
    return engine.generate([PROMPT], max_new_tokens=8, temperature=0)[0].text


def ask(engine: Engine, operation: Operation) -> PreparedReply:
    return engine.perform(operation, PreparedReply)


def commit(engine: Engine, update: str, **more: object) -> UpdateReply:
    operation = CommitWeights(f"commit {update} {len(more)}", update_id=update, **more)  # type: ignore[arg-type]
    return engine.perform(operation, UpdateReply)


def checksum(engine: Engine) -> str:
    return engine.perform(ChecksumWeights("sum"), ChecksumReply).total


def test_what_is_prepared_is_served_only_once_it_is_committed(
    engine: Engine, checkpoints: tuple[Path, Path]
) -> None:
    before = said(engine)
    reply = ask(engine, PrepareWeights("1", "u", str(checkpoints[1])))
    assert (reply.success, reply.update_id) == (True, "u"), reply
    assert engine.weights.prepared.update_id == "u"
    assert said(engine) == before
    later = engine.submit(PROMPT, SamplingParams(max_new_tokens=40, ignore_eos=True, temperature=0))
    engine.step()
    engine.pause(PauseMode.IN_PLACE)
    done = commit(engine, "u", weight_version="v2", flush_cache=False)
    assert (done.success, done.outcome, done.weight_version) == (True, UpdateOutcome.UPDATED, "v2")
    assert engine.weights.prepared.update_id is None
    engine.continue_generation()
    while not later.done:
        engine.step()
    assert [span.version for span in later.spans][-1] == "v2"
    assert said(engine) == said(Engine.open(checkpoints[1], "cpu", config=EngineConfig(kv_tokens=2048)))


def test_both_phases_may_be_asked_for_twice(engine: Engine, checkpoints: tuple[Path, Path]) -> None:
    for turn in "12":
        assert ask(engine, PrepareWeights(turn, "u", str(checkpoints[1]))).success
    assert commit(engine, "u", weight_version="v2").success
    again = commit(engine, "u", weight_version="v2", abort_all_requests=False)
    assert (again.success, again.weight_version) == (True, "v2")
    assert "before" in again.message


def test_a_name_that_was_committed_may_mean_another_update(
    engine: Engine, checkpoints: tuple[Path, Path]
) -> None:
    old = checksum(engine)
    for turn, path in enumerate(reversed(checkpoints)):
        assert ask(engine, PrepareWeights(f"p{turn}", "u", str(path))).success
        assert commit(engine, "u").success
    assert checksum(engine) == old, "the second was answered as the first, and never written"


def test_a_second_commit_is_refused_once_the_weights_are_others(
    engine: Engine, checkpoints: tuple[Path, Path]
) -> None:
    assert ask(engine, PrepareWeights("1", "u", str(checkpoints[1]))).success
    assert commit(engine, "u", weight_version="v2").success
    assert engine.update_weights_from_disk(checkpoints[0], weight_version="v3").success
    again = commit(engine, "u", weight_version="v2", abort_all_requests=False)
    assert (again.success, again.outcome) == (False, UpdateOutcome.UNCHANGED)
    assert engine.weights.store.state.weight_version == "v3"


@pytest.mark.parametrize("path", ["", "/nowhere", "itself"])
def test_what_cannot_be_prepared_changes_nothing(engine: Engine, tmp_path: Path, path: str) -> None:
    (tmp_path / "config.json").write_text("{}")
    before = said(engine)
    reply = ask(engine, PrepareWeights("1", "u", str(tmp_path) if path == "itself" else path))
    assert not reply.success
    assert reply.message
    assert engine.weights.prepared.update_id is None
    assert not commit(engine, "u").success
    assert said(engine) == before


def test_one_update_is_prepared_at_a_time_and_can_be_let_go(
    engine: Engine, checkpoints: tuple[Path, Path]
) -> None:
    ask(engine, PrepareWeights("1", "u", str(checkpoints[1])))
    other = ask(engine, PrepareWeights("2", "w", str(checkpoints[0])))
    assert not other.success
    assert "'u'" in other.message
    assert ask(engine, DiscardWeights("3", "w")).success, "what was never prepared"
    assert engine.weights.prepared.update_id == "u"
    assert ask(engine, DiscardWeights("4", "u")).success
    missing = commit(engine, "u")
    assert (missing.success, missing.outcome) == (False, UpdateOutcome.UNCHANGED)
    assert ask(engine, PrepareWeights("5", "w", str(checkpoints[0]))).success


def test_a_member_generates_once_it_has_the_fleets_weights(checkpoints: tuple[Path, Path]) -> None:
    config = EngineConfig(kv_tokens=2048, await_fleet=True)
    engine = Engine.open(checkpoints[0], "cpu", config=config)
    generation = engine.submit(PROMPT, SamplingParams(max_new_tokens=4, ignore_eos=True, temperature=0))
    for _ in range(5):
        engine.step()
    assert not generation.tokens
    assert engine.weights.membership.waiting
    ask(engine, PrepareWeights("1", "u", str(checkpoints[1])))
    assert commit(engine, "u", weight_version="v2").success
    refusals: list[Reply] = [
        ask(engine, JoinFleet("2", "v3")),
        ask(engine, JoinFleet("3", "v2", checksum="0" * 16)),
    ]
    assert [reply.success for reply in refusals] == [False, False]
    assert "'v3'" in refusals[0].message
    assert engine.weights.membership.waiting
    joined = ask(engine, JoinFleet("4", "v2", checksum(engine)))
    assert (joined.success, joined.waiting) == (True, False)
    while not generation.done:
        engine.step()
    assert len(generation.tokens) == 4


def test_only_the_holder_of_the_lease_steers(engine: Engine, checkpoints: tuple[Path, Path]) -> None:
    new = str(checkpoints[1])
    ask(engine, PrepareWeights("0", "of a killed process", new))
    assert ask(engine, ClaimForFleet("1", "blue", "Blue", "one")).lease == "one"
    for lease in ("", "other"):
        refused = [
            ask(engine, PrepareWeights("2", "u", new, lease=lease)),
            ask(engine, DiscardWeights("3", "of a killed process", lease)),
            ask(engine, HoldForFleet("4", lease=lease)),
            ask(engine, JoinFleet("5", engine.weights.store.state.weight_version, lease=lease)),
        ]
        assert [("Blue" in one.message, one.success) for one in refused] == [(True, False)] * 4
        assert not commit(engine, "of a killed process", lease=lease).success
    assert "Blue" in ask(engine, ClaimForFleet("6", "red", "Red", "three")).message
    assert ask(engine, ClaimForFleet("7", "blue", "Blue", "two")).success, "its own, claimed anew"
    assert not ask(engine, PrepareWeights("8", "u", new, lease="one")).success, "said before that, and late"
    ended = ask(engine, EndClaim("9", "one"))
    assert ended.success
    assert not ended.lease, "who has an old lease is not told the present one"
    assert engine.weights.membership.steered_by == "Blue", "an old lease ends nothing"
    assert ask(engine, PrepareWeights("10", "u", new, lease="two")).success, "in place of what was prepared"
    assert commit(engine, "u", lease="two").success
    assert ask(engine, ClaimForFleet("11", "red", "Red", "three", take_over=True)).success
    assert ask(engine, EndClaim("12", "three")).success
    assert engine.weights.membership.steered_by is None
    assert not ask(engine, PrepareWeights("13", "u", new, lease="two")).success


def test_a_claim_that_goes_on_is_refused_where_another_process_came_between(engine: Engine) -> None:
    def claim(number: str, holder: str, *, again: bool, take_over: bool = False) -> PreparedReply:
        return ask(engine, ClaimForFleet(number, "blue", "", number, take_over, holder, again))

    assert claim("1", "one", again=True).success, "after a restart, which is not its fault"
    assert claim("2", "one", again=True).success
    assert claim("3", "two", again=False).success, "the next process of the same fleet"
    assert ask(engine, EndClaim("4", "3")).success
    refused = claim("5", "one", again=True)
    assert not refused.success
    assert "Another process has steered this engine" in refused.message
    assert engine.weights.membership.steered_by is None
    assert claim("6", "one", again=False).success, "with a verb of its own"


@pytest.mark.parametrize("mode", HoldMode)
def test_a_held_engine_generates_nothing_until_it_joins_and_a_pause_outlives_that(
    engine: Engine, checkpoints: tuple[Path, Path], mode: HoldMode
) -> None:
    running = engine.submit(PROMPT, SamplingParams(max_new_tokens=12, ignore_eos=True, temperature=0))
    for _ in range(4):
        engine.step()
    assert not running.done
    assert ask(engine, HoldForFleet("1", mode, 60)).waiting
    assert running.done is (mode is HoldMode.FINISH)
    engine.pause(PauseMode.IN_PLACE)
    ask(engine, PrepareWeights("2", "u", str(checkpoints[1])))
    flush = mode is not HoldMode.IN_PLACE
    assert commit(engine, "u", weight_version="v2", flush_cache=flush).success
    refused = engine.perform(Continue("3"), Reply)
    assert "fleet" in refused.message, "to continue does not end it"
    assert ask(engine, JoinFleet("4", "v2")).success
    for _ in range(20):
        engine.step()
    assert running.done is (mode is HoldMode.FINISH), "an operator's pause is there still"
    engine.continue_generation()
    while not running.done:
        engine.step()
    assert len(running.tokens) == 12
    if mode is not HoldMode.FINISH:
        assert running.spans[-1].version == "v2"


def test_what_does_not_end_in_time_is_not_held(engine: Engine) -> None:
    running = engine.submit(PROMPT, SamplingParams(max_new_tokens=400, ignore_eos=True, temperature=0))
    engine.step()
    refused = ask(engine, HoldForFleet("1", HoldMode.FINISH, 0))
    assert not refused.success
    assert "1 requests have not ended" in refused.message
    assert not engine.weights.membership.waiting
    engine.step()
    assert not running.done
