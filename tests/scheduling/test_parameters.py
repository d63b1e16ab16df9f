"""Sampling parameters are taken up to their very bounds, and refused beyond them by their names."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
import pytest

from devicekit.scheduling.batch import ModelLimits
from devicekit.scheduling.errors import InvalidRequest
from devicekit.scheduling.request import Request, SamplingParams, prompt_array
from devicekit.text import Grammar, GrammarKind

LIMITS = ModelLimits(100, 300, frozenset())
ABOVE, BELOW = math.inf, -math.inf
# What a parameter means nothing without.
BESIDE: dict[str, dict[str, Any]] = {"logprob_ids": {"logprobs": 0}, "prompt_logprobs": {"logprobs": 0}}


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("temperature", (0, 1e6), (math.nextafter(0, BELOW), math.nextafter(1e6, ABOVE), math.inf, math.nan)),
        ("top_p", (math.nextafter(0, ABOVE), 1), (0, math.nextafter(1, ABOVE))),
        ("top_k", (0, 1 << 30), (-1,)),
        ("min_p", (0, 1), (math.nextafter(0, BELOW), math.nextafter(1, ABOVE))),
        ("max_new_tokens", (0, 1), (-1,)),
        ("logprobs", (0, 100), (-1, 101)),
        ("logprob_ids", ((), (0, 99)), ((-1,), (100,), (1, 100))),
        ("prompt_logprobs", (0, 7), (-1,)),
        ("min_new_tokens", (0, 128), (-1, 129)),
        ("seed", (-(2**63), 2**63 - 1), (-(2**63) - 1, 2**63)),
        ("stop_token_ids", ((0, 99),), ((-1,), (100,))),
        ("frequency_penalty", (-2, 2), (math.nextafter(-2, BELOW), math.nextafter(2, ABOVE))),
        ("presence_penalty", (-2, 2), (math.nextafter(-2, BELOW), math.nextafter(2, ABOVE))),
        ("repetition_penalty", (0.01, 100), (0.0099, math.nextafter(100, ABOVE))),
        (
            "logit_bias",
            (((0, -100.0), (99, 100.0)),),
            (((100, 1.0),), ((-1, 1.0),), ((1, 101.0),), ((1, -101.0),)),
        ),
    ],
    ids=lambda one: one if isinstance(one, str) else "",
)
def test_a_parameter_is_taken_up_to_its_bounds(name: str, taken: tuple, refused: tuple) -> None:
    for value in taken:
        assert SamplingParams(**BESIDE.get(name, {}), **{name: value}).problems(LIMITS) == [], value
    for value in refused:
        [problem] = SamplingParams(**BESIDE.get(name, {}), **{name: value}).problems(LIMITS)
        assert name in problem


def test_what_means_nothing_alone_is_refused_alone() -> None:
    for given in ({"logprob_ids": (1,)}, {"prompt_logprobs": 0}):
        assert SamplingParams(**given).problems(LIMITS) == ["logprob_ids and prompt_logprobs need logprobs"]
    assert SamplingParams(max_new_tokens=0, logprobs=0, prompt_logprobs=0).problems(LIMITS) == []
    [said] = SamplingParams(max_new_tokens=-1, logprobs=0, prompt_logprobs=0).problems(LIMITS)
    assert said == "max_new_tokens must be 0 or more, not -1"
    grammar = Grammar(GrammarKind.REGEX, "a")
    assert SamplingParams(grammar=grammar).problems(LIMITS) == []
    [said] = SamplingParams(grammar=grammar, min_new_tokens=1).problems(LIMITS)
    assert said.startswith("min_new_tokens cannot be had with a grammar")


def test_what_is_wrong_with_many_tokens_is_told_of_eight() -> None:
    strange = tuple(range(100, 120))
    for params in (
        SamplingParams(logprobs=0, logprob_ids=strange),
        SamplingParams(logit_bias=tuple((token, 1.0) for token in strange)),
    ):
        [said] = params.problems(LIMITS)
        assert str([*strange[:8]]) in said
    assert SamplingParams(logit_bias=((1, 1.0), (1, 1.0))).problems(LIMITS) == [
        "logit_bias has a token twice"
    ]


def test_whoever_knows_a_parameter_by_another_name_reads_that() -> None:
    ours = ("max_new_tokens", "min_new_tokens", "logprobs", "logprob_ids", "prompt_logprobs", "seed")
    names = {name: f"theirs-{at}" for at, name in enumerate(ours)}
    wrong = SamplingParams(
        max_new_tokens=-1, min_new_tokens=9, logprobs=101, logprob_ids=(-1,), prompt_logprobs=-1, seed=2**63
    )
    said = "; ".join(wrong.problems(LIMITS, names))
    for name, other in names.items():
        assert name not in said
        assert other in said
    for name, other in names.items():
        said = said.replace(other, name)
    assert said == "; ".join(wrong.problems(LIMITS))


def test_no_token_may_be_left_that_does_not_end_an_output_which_must_not_end_yet() -> None:
    stops = tuple(range(1, 100))
    limits = ModelLimits(100, 300, frozenset({0}))
    assert SamplingParams(min_new_tokens=1, stop_token_ids=stops[1:]).problems(limits) == []
    assert SamplingParams(stop_token_ids=stops).problems(limits) == []
    [said] = SamplingParams(min_new_tokens=1, stop_token_ids=stops).problems(limits)
    assert said == "min_new_tokens leaves no token, as every one of them stops the output"


def test_what_a_request_gets_that_says_nothing() -> None:
    params = dataclasses.asdict(SamplingParams())
    assert {name for name, value in params.items() if value is None} == {
        *("seed", "logprobs", "prompt_logprobs", "grammar")
    }
    assert {name for name, value in params.items() if value is False} == {
        *("ignore_eos", "raw_logprobs", "keep_stop")
    }
    assert {name: value for name, value in params.items() if value} == {
        "max_new_tokens": 128,
        "temperature": 1.0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
    }
    assert not SamplingParams().adjusts
    request = Request("r", np.array([4, 5, 6], np.int32))
    made = {one.name: getattr(request, one.name) for one in dataclasses.fields(request)}
    ours = {"id", "prompt", "params", "tokens", "total", "column"}
    assert not any(value for name, value in made.items() if name not in ours), made
    assert (request.total, request.column, request.num_output, [*request.tokens]) == (3, -1, 0, [4, 5, 6])


@pytest.mark.parametrize(
    "given",
    [
        {"min_new_tokens": 1},
        {"frequency_penalty": 0.1},
        {"presence_penalty": -0.1},
        {"repetition_penalty": 1.1},
        {"logit_bias": ((1, 1.0),)},
    ],
    ids=lambda one: next(iter(one)),
)
def test_each_of_these_alone_changes_logits(given: dict) -> None:
    assert SamplingParams(**given).adjusts


@pytest.mark.parametrize(
    ("scored", "cached"), [(None, 4), (0, 0), (3, 3), (4, 4), (9, 4)], ids=lambda one: str(one)
)
def test_what_is_to_be_scored_is_computed(scored: int | None, cached: int) -> None:
    params = SamplingParams(prompt_logprobs=scored, logprobs=0)
    assert Request("r", np.arange(5, dtype=np.int32), params).reusable == cached


def test_a_prompt_is_a_flat_list_of_integers_of_32_bits() -> None:
    least, greatest = -(2**31), 2**31 - 1
    given: list[Any] = [[], [least, 0, greatest], np.array([1, 2], np.uint8), np.array([1], np.int64)]
    for sound in given:
        found = prompt_array(sound)
        assert (found.dtype, [*found]) == (np.int32, [*sound])
    given = [[least - 1], [greatest + 1], [2**64], [[1]], 1, ["a"], [1.0], [[1], [1, 2]], [None]]
    for wrong in given:
        with pytest.raises(InvalidRequest, match="prompt"):
            prompt_array(wrong)
