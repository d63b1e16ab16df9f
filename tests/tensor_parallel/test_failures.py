"""A rank that fails in the middle of a pass leaves nobody waiting, and everybody knows which one it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from devicekit.engine import Engine, EngineConfig
from tests.scheduling.processes import Worlds
from tests.tensor_parallel import scenarios
from tests.tensor_parallel.conftest import Written
from tests.tensor_parallel.scenarios import KV_TOKENS, SHORT, Lost, Seen

EXCHANGES = 6  # of a pass: the embedding, two in each of two layers, and the head
OF_A_VERB = 16  # of a checksum: the embedding, seven weights in each of two layers, and the head
LONGER = 20.0  # seconds, a timeout that a busy machine keeps to while the engine is opened
BOUND = 60.0  # seconds, a quarter of the timeout: what ends later was not noticed by itself
GAVE_UP = "Lost rank 1: it gave up: ValueError: a cosmic ray"
ENDED = "Lost rank 1: its process has ended or stands still"


def told(
    worlds: Worlds,
    path: str,
    at: int,
    act: str,
    *,
    verb: bool = False,
    expect: str = "",
    short: float = SHORT,
    until: str = "",
) -> list[Lost]:
    arguments = (path, at, act, verb, 1, "cpu", short, until)
    ends: list[Lost] = worlds(2).play(scenarios.broken, *arguments, expect=expect)  # type: ignore[assignment]
    assert not any(one.healthy for one in ends)
    return ends


@pytest.mark.parametrize("at", range(1, EXCHANGES + 2))  # the last one is in the second pass
def test_a_rank_that_raises_in_a_pass_ends_it_for_all_at_once(
    worlds: Worlds, written: Written, at: int
) -> None:
    first, second = told(worlds, written("llama"), at, "raise")
    assert first.seconds < BOUND
    assert second.seconds < BOUND
    assert len(first.told) == 3
    assert all(GAVE_UP in message for message in first.told)
    assert first.lost == second.lost == second.raised == GAVE_UP


def test_rank_0_is_no_exception(worlds: Worlds, written: Written) -> None:
    first, second = worlds(2).play(scenarios.broken, written("llama"), 3, "raise", False, 0)
    assert isinstance(first, Lost)
    assert isinstance(second, Lost)
    assert max(first.seconds, second.seconds) < BOUND
    assert second.raised == first.lost == GAVE_UP.replace("rank 1", "rank 0")


def test_a_rank_that_raises_while_weights_are_put_together_ends_it_for_all(
    worlds: Worlds, written: Written
) -> None:
    first, second = told(worlds, written("llama"), 5, "raise", verb=True)
    assert max(first.seconds, second.seconds) < BOUND
    assert GAVE_UP in first.told[0]
    assert first.lost == second.raised == GAVE_UP


def test_a_rank_that_stands_still_in_a_pass_is_given_up_when_its_time_is_up(
    worlds: Worlds, written: Written
) -> None:
    first, second = told(worlds, written("llama"), 3, "stop")
    assert SHORT <= first.seconds < 2 * SHORT  # and not only when it goes on, after thrice that
    assert all(ENDED in message for message in first.told)
    assert second.raised  # once it goes on


@pytest.mark.parametrize("verb", [False, True], ids=["pass", "verb"])
def test_a_rank_that_dies_in_a_pass_is_named(worlds: Worlds, written: Written, verb: bool) -> None:
    world = worlds(2)
    [first] = told(worlds, written("llama"), 4, "die", verb=verb, expect="1")
    world.replace("1")
    assert first.seconds < BOUND
    assert first.told
    assert all(ENDED in message for message in first.told)


NO_ROOM = "Lost rank 1: it gave up: OutOfMemoryError: no room for an activation"


def _runs_out(worlds: Worlds, path: str, at: int, *, verb: bool = False) -> None:
    first, second = told(worlds, path, at, "memory", verb=verb)
    assert max(first.seconds, second.seconds) < BOUND
    assert len(first.told) == (1 if verb else 3)
    assert all(NO_ROOM in message for message in first.told)
    assert first.lost == second.raised == NO_ROOM


def _dies(worlds: Worlds, path: str, at: int, *, verb: bool = False) -> None:
    world = worlds(2)
    [first] = told(worlds, path, at, "die", verb=verb, expect="1")
    world.replace("1")
    assert first.seconds < BOUND
    assert first.told
    assert all(ENDED in message for message in first.told)


def _stands_still(worlds: Worlds, path: str, at: int, until: Path, *, verb: bool = False) -> None:
    first, second = told(worlds, path, at, "stop", verb=verb, short=LONGER, until=str(until))
    assert LONGER <= first.seconds < 2 * LONGER  # and not only when it goes on, after thrice that
    assert first.told
    assert all(ENDED in message for message in first.told)
    assert second.raised


def test_a_rank_that_runs_out_of_memory_in_the_middle_of_a_pass_ends_it_for_all(
    worlds: Worlds, written: Written
) -> None:
    _runs_out(worlds, written("llama"), 3)


@pytest.mark.thorough
@pytest.mark.parametrize("at", range(1, EXCHANGES + 2))
def test_a_rank_may_run_out_of_memory_or_die_at_any_exchange_of_a_pass(
    worlds: Worlds, written: Written, at: int
) -> None:
    _runs_out(worlds, written("llama"), at)
    _dies(worlds, written("llama"), at)


@pytest.mark.thorough
@pytest.mark.parametrize("at", range(1, EXCHANGES + 2))
def test_a_rank_may_stand_still_at_any_exchange_of_a_pass(
    worlds: Worlds, written: Written, tmp_path: Path, at: int
) -> None:
    _stands_still(worlds, written("llama"), at, tmp_path / "given up")


@pytest.mark.thorough
@pytest.mark.parametrize("at", range(1, OF_A_VERB + 1))
def test_a_rank_may_run_out_of_memory_or_die_at_any_exchange_of_a_verb(
    worlds: Worlds, written: Written, at: int
) -> None:
    _runs_out(worlds, written("llama"), at, verb=True)
    _dies(worlds, written("llama"), at, verb=True)


@pytest.mark.thorough
@pytest.mark.parametrize("at", range(1, OF_A_VERB + 1))
def test_a_rank_may_stand_still_at_any_exchange_of_a_verb(
    worlds: Worlds, written: Written, tmp_path: Path, at: int
) -> None:
    _stands_still(worlds, written("llama"), at, tmp_path / "given up", verb=True)


def test_what_fails_before_a_pass_is_tried_again_or_told_and_nobody_is_lost(
    worlds: Worlds, written: Written
) -> None:
    path = written("llama")
    tokens = scenarios.generate(Engine.open(path, "cpu", config=EngineConfig(kv_tokens=KV_TOKENS)))
    [seen, _] = worlds(2).play(scenarios.prepared, path, "memory")
    assert isinstance(seen, Seen)
    assert seen.said["tokens"] == seen.said["again"] == tokens
    [seen, _] = worlds(2).play(scenarios.prepared, path, "ray")
    assert isinstance(seen, Seen)
    assert seen.said["tokens"] != tokens
    assert seen.said["again"] == tokens
    assert seen.said["healthy"]


def test_a_vendor_that_only_its_plugin_knows_brings_its_own_collectives(
    worlds: Worlds, written: Written
) -> None:
    path = written("llama")
    missing = worlds(2).play(scenarios.of_acme, path, False)
    assert "ConfigurationError: Tensors of cpu go from rank to rank by 'accl'" in str(missing[0])
    nothing = worlds(2).play(scenarios.of_acme, path, False, False)
    assert "backend 'acme'" in str(nothing[0])
    assert "names none (collective_backend)" in str(nothing[0])
    [seen, _] = worlds(2).play(scenarios.of_acme, path, True)
    assert isinstance(seen, Seen)
    whole = Engine.open(path, "cpu", config=EngineConfig(kv_tokens=KV_TOKENS))
    assert seen.said["tokens"] == scenarios.generate(whole)
    [first, second] = worlds(2).play(scenarios.broken_on_acme, path, 3)
    assert isinstance(first, Lost)
    assert isinstance(second, Lost)
    assert max(first.seconds, second.seconds) < BOUND
    assert first.lost == second.raised == GAVE_UP


def test_a_draft_is_refused_by_name(worlds: Worlds, written: Written) -> None:
    told = worlds(2).play(scenarios.with_a_draft, written("llama"))
    assert told[0] == told[1]
    assert "a draft model cannot follow one that ranks hold together" in str(told[0])
