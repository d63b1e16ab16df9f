"""What is said of a request that can never run: each thing that is wrong with it, and nothing else."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Any

import numpy as np
import pytest

from devicekit.scheduling.batch import ModelLimits
from devicekit.scheduling.checking import RequestCheck
from devicekit.scheduling.errors import InvalidRequest
from devicekit.scheduling.request import Request, SamplingParams
from devicekit.text import Grammar, GrammarKind

LIMITS = ModelLimits(vocab_size=50, max_positions=40, eos_token_ids=frozenset({0}))
GRAMMAR = Grammar(GrammarKind.REGEX, "a")
# What is wrong, by what is said of it.
WRONG: dict[str, dict[str, Any]] = {
    "it has stop strings, and this engine has no tokenizer": {"stop": ("a",)},
    "its output is to follow a grammar, and this engine has no tokenizer": {"grammar": GRAMMAR},
    "the prompt is empty": {"prompt": []},
    "the prompt has tokens outside the vocabulary of 50": {"prompt": [1, 50]},
    "the prompt has 40 tokens, and the model takes fewer than 40": {"prompt": [1] * 40},
    "timeout must be a positive number of seconds, not 0": {"timeout": 0},
    "top_k must be 0 or more, not -1": {"top_k": -1},
    "temperature must be from 0 to 1e+06, not -1": {"temperature": -1},
}
_OWN = ("prompt", "timeout")


def made(fields: dict[str, Any]) -> Request:
    params = dataclasses.replace(SamplingParams(), **{k: v for k, v in fields.items() if k not in _OWN})
    prompt = np.array(fields.get("prompt", [1, 2]), np.int32)
    return Request("r", prompt, params, timeout=fields.get("timeout"))


@pytest.mark.parametrize("count", [1, 2, 3])
def test_everything_that_is_wrong_is_said_and_nothing_else(count: int) -> None:
    check = RequestCheck(LIMITS, 100, has_tokenizer=False)
    for chosen in itertools.combinations(WRONG, count):
        if sum("prompt" in WRONG[said] for said in chosen) > 1:
            continue
        with pytest.raises(InvalidRequest) as refused:
            check.check(made({name: value for said in chosen for name, value in WRONG[said].items()}))
        found = str(refused.value).removeprefix("Request 'r' cannot run: ").removesuffix(".").split("; ")
        assert sorted(found) == sorted(chosen)


@pytest.mark.parametrize("fields", [{}, {"stop": ("a",)}, {"grammar": GRAMMAR}, {"timeout": 1.0}])
def test_what_is_sound_passes_where_there_is_a_tokenizer(fields: dict[str, Any]) -> None:
    RequestCheck(LIMITS, 100, has_tokenizer=True, has_grammars=True).check(made(fields))
