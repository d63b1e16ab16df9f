"""Sampling parameters are taken up to their very bounds, and refused beyond them by their names."""

from __future__ import annotations

import math

import pytest

from devicekit.scheduling.batch import ModelLimits
from devicekit.scheduling.request import SamplingParams

LIMITS = ModelLimits(100, 300, frozenset())
ABOVE, BELOW = math.inf, -math.inf


@pytest.mark.parametrize(
    ("name", "taken", "refused"),
    [
        ("temperature", (0,), (math.nextafter(0, BELOW), math.inf)),
        ("top_p", (math.nextafter(0, ABOVE), 1), (0, math.nextafter(1, ABOVE))),
        ("top_k", (0, 1 << 30), (-1,)),
        ("min_p", (0, 1), (math.nextafter(0, BELOW), math.nextafter(1, ABOVE))),
        ("max_new_tokens", (1,), (0, -1)),
        ("logprobs", (0, 100), (-1, 101)),
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
        assert SamplingParams(**{name: value}).problems(LIMITS) == [], value
    for value in refused:
        [problem] = SamplingParams(**{name: value}).problems(LIMITS)
        assert name in problem
