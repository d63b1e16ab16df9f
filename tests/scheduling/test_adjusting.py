"""Penalties, biases and minimum lengths: what a runner is told to do to logits, and that nobody else pays."""

from __future__ import annotations

import random
from collections.abc import Callable

import numpy as np
import pytest

from devicekit.scheduling.batch import ForwardBatch, LogitAdjustments, StepOutput
from devicekit.scheduling.errors import InvalidRequest
from devicekit.scheduling.messages import Abort, AbortReply, Continue, Pause, PauseMode, PauseReply
from devicekit.scheduling.request import FinishKind, Request, SamplingParams
from tests.hash_runner import HashRunner
from tests.scheduling.rig import Rig

MakeRig = Callable[..., Rig]
PROMPT = [7, 3, 7, 9]


def _add(rig: Rig, identity: str, prompt: list[int] = PROMPT, **params: object) -> None:
    chosen = SamplingParams(**{"max_new_tokens": 12, "temperature": 0.0, **params})
    rig.scheduler.add(Request(identity, np.array(prompt, np.int32), chosen))


@pytest.fixture
def told(monkeypatch: pytest.MonkeyPatch) -> list[LogitAdjustments | None]:
    """What every pass from now on tells the runner."""
    seen: list[LogitAdjustments | None] = []
    step = HashRunner.step

    def watched(self: HashRunner, batch: ForwardBatch) -> StepOutput:
        seen.append(batch.adjustments)
        return step(self, batch)

    monkeypatch.setattr(HashRunner, "step", watched)
    return seen


def _of(told: LogitAdjustments | None, row: int = 0) -> dict[int, tuple[float, float]]:
    """Scale and offset of each token of one position, neutral ones left out."""
    assert told is not None
    mine = told.rows == row
    values = zip(
        told.tokens[mine].tolist(), told.scales[mine].tolist(), told.offsets[mine].tolist(), strict=True
    )
    found = {token: (scale, offset) for token, scale, offset in values}
    assert len(found) == int(mine.sum()), "a pair of position and token came twice"
    return {token: pair for token, pair in found.items() if pair != (1.0, 0.0)}


def test_penalties_follow_every_token_of_the_output(rig: Rig, told: list[LogitAdjustments | None]) -> None:
    _add(rig, "x", frequency_penalty=0.5, presence_penalty=0.25, repetition_penalty=2.0, max_new_tokens=30)
    rig.run()
    output = rig.outputs["x"]
    assert len(told) == 30
    for at, one in enumerate(told):
        counts = {token: output[:at].count(token) for token in output[:at]}
        expected = {
            token: (2.0, -(0.5 * counts[token] + 0.25) if token in counts else 0.0)
            for token in {*PROMPT, *counts}
        }
        assert _of(one) == expected


def test_biases_are_added_to_what_penalties_take_off(rig: Rig, told: list[LogitAdjustments | None]) -> None:
    _add(rig, "plain")
    rig.run()
    first = rig.outputs["plain"][0]
    told.clear()
    _add(rig, "x", logit_bias=((first, 4.0), (5, -100.0)), presence_penalty=1.0, max_new_tokens=2)
    rig.run()
    assert _of(told[0]) == {first: (1.0, 4.0), 5: (1.0, -100.0)}
    came = rig.outputs["x"][0]
    assert _of(told[1])[came] == (1.0, 3.0 if came == first else -1.0)


def test_before_its_minimum_nothing_stops_an_output(new_rig: MakeRig) -> None:
    free = new_rig()
    _add(free, "free", max_new_tokens=10)
    free.run()
    ends, stops = free.outputs["free"][1], free.outputs["free"][3]
    rig = new_rig(eos=frozenset({ends}))
    _add(rig, "early")
    _add(rig, "late", min_new_tokens=6, stop_token_ids=(stops,))
    rig.run()
    assert len(rig.outputs["early"]) == 2
    assert not {ends, stops} & set(rig.outputs["late"][:6])
    assert len(rig.outputs["late"]) > 6


@pytest.mark.parametrize("others", [(), (96,), (0, 1, 96)])
def test_any_of_a_models_end_tokens_ends_an_output(new_rig: MakeRig, others: tuple[int, ...]) -> None:
    free = new_rig()
    _add(free, "free", max_new_tokens=10)
    free.run()
    ends = free.outputs["free"][4]
    rig = new_rig(eos=frozenset({ends, *others}))
    _add(rig, "x", max_new_tokens=10)
    rig.run()
    at = min(free.outputs["free"].index(one) for one in {ends, *others} & {*free.outputs["free"]})
    assert rig.outputs["x"] == free.outputs["free"][: at + 1]
    assert rig.finishes["x"].kind is FinishKind.STOP


def test_at_its_minimum_an_output_may_stop_again(rig: Rig, told: list[LogitAdjustments | None]) -> None:
    _add(rig, "x", min_new_tokens=3, stop_token_ids=(50,), max_new_tokens=6)
    rig.run()
    assert [None if one is None else _of(one) for one in told] == [{50: (1.0, -np.inf)}] * 3 + [None] * 3


def test_plain_requests_beside_those_that_ask_keep_their_tokens_and_pay_nothing_alone(
    new_rig: MakeRig, told: list[LogitAdjustments | None]
) -> None:
    alone = new_rig()
    _add(alone, "plain", [1, 2, 3], max_new_tokens=20)
    alone.run()
    assert set(told) == {None}
    rig = new_rig()
    _add(rig, "plain", [1, 2, 3], max_new_tokens=20)
    _add(rig, "asks", frequency_penalty=1.0, logit_bias=((5, 1.0),), max_new_tokens=8)
    rig.run()
    assert rig.outputs["plain"] == alone.outputs["plain"]
    assert told[-1] is None  # once the one that asks has ended
    assert not rig.scheduler.state.requests.adjusted


@pytest.mark.parametrize("seed", range(4))
def test_counts_survive_retraction_and_company(new_rig: MakeRig, seed: int) -> None:
    """Tokens depend on everything that was asked for: one count that is off by one changes them."""
    draw = random.Random(seed)
    wishes = {
        f"r{number}": {
            "prompt": [draw.randrange(1, 900) for _ in range(draw.randrange(1, 30))],
            "frequency_penalty": draw.choice((0.0, 0.5)),
            "presence_penalty": draw.choice((0.0, -1.0)),
            "repetition_penalty": draw.choice((1.0, 1.25)),
            "min_new_tokens": draw.choice((0, 9)),
            "max_new_tokens": draw.randrange(9, 40),
            "logit_bias": draw.choice(((), ((3, 2.0), (4, -1.0)))),
        }
        for number in range(6)
    }
    undisturbed = {}
    for identity, wish in wishes.items():
        alone = new_rig()
        _add(alone, identity, **wish)
        alone.run()
        undisturbed[identity] = alone.outputs[identity]
    rig = new_rig(num_pages=24, max_running=4, max_batch_tokens=9)
    for identity, wish in wishes.items():
        _add(rig, identity, **wish)
    for turn in range(200):
        if draw.random() < 0.2:
            assert rig.do(Pause(f"p{turn}", PauseMode.RETRACT), PauseReply).success
            assert rig.do(Continue(f"c{turn}"), PauseReply).success
        rig.step()
    rig.run()
    assert rig.outputs == undisturbed
    assert sum(one.retractions for one in rig.last.values()) > 0


def test_hundreds_of_tokens_may_be_concerned(rig: Rig, told: list[LogitAdjustments | None]) -> None:
    bias = tuple((token, token / 10) for token in range(0, 900, 3))
    _add(rig, "biased", logit_bias=bias, max_new_tokens=1)
    rig.run()
    assert _of(told[0]) == {token: (1.0, pytest.approx(value)) for token, value in bias if value}
    prompt = list(range(1, 150))
    _add(rig, "long", prompt, repetition_penalty=2.0, frequency_penalty=1.0, max_new_tokens=90)
    rig.run()
    told[:] = [one for one in told[1:] if one is not None]  # the prompt is computed in three parts
    assert _of(told[0]) == dict.fromkeys(prompt, (2.0, 0.0))
    assert len(_of(told[-1])) == len({*prompt, *rig.outputs["long"][:-1]}) > 200


def test_an_aborted_request_leaves_no_wishes_behind(rig: Rig) -> None:
    _add(rig, "x", frequency_penalty=1.0)
    rig.step(3)
    rig.do(Abort("a", "x"), AbortReply)
    assert rig.finishes["x"].kind is FinishKind.ABORT
    assert not rig.scheduler.state.requests.adjusted


@pytest.mark.parametrize(
    ("params", "words"),
    [
        ({"frequency_penalty": 2.5}, "frequency_penalty must be from -2 to 2"),
        ({"presence_penalty": float("nan")}, "presence_penalty must be from -2 to 2"),
        ({"repetition_penalty": 0.0}, "repetition_penalty must be from 0.01"),
        ({"repetition_penalty": float("inf")}, "repetition_penalty must be from 0.01"),
        ({"min_new_tokens": -1}, "min_new_tokens must be from 0 to max_new_tokens"),
        ({"min_new_tokens": 13}, "min_new_tokens must be from 0 to max_new_tokens"),
        ({"logit_bias": ((997, 1.0),)}, "outside the vocabulary of 997"),
        ({"logit_bias": ((-1, 1.0),)}, "outside the vocabulary of 997"),
        ({"logit_bias": ((1, 101.0),)}, "logit_bias must be from -100 to 100"),
        ({"logit_bias": ((1, 1.0), (1, 2.0))}, "a token twice"),
        ({"min_new_tokens": 1, "stop_token_ids": tuple(range(997))}, "leaves no token"),
    ],
)
def test_what_makes_no_sense_is_refused_before_it_costs_anything(
    rig: Rig, params: dict[str, object], words: str
) -> None:
    with pytest.raises(InvalidRequest, match=words):
        _add(rig, "x", **params)
    assert not rig.scheduler.state.requests.adjusted
