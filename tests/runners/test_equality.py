"""Greedy tokens are those of the model run alone, however its tokens are chunked, batched and paged."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import numpy as np
import pytest

from examples.checkpoints import EXAMPLE_ARCHITECTURES
from tests.oracle import own_answers

PROMPT_LENGTHS = (1, 2, 7, 16, 33, 50)
NEW_TOKENS = 20


def prompts(seed: int) -> list[list[int]]:
    rng = np.random.default_rng(seed)
    return [rng.integers(1, 384, length).tolist() for length in PROMPT_LENGTHS]


@cache
def alone(path: Path, seed: int) -> list[list[int]]:
    """What the model's own generate answers, one prompt at a time."""
    return own_answers(path, prompts(seed), NEW_TOKENS)


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("architecture", EXAMPLE_ARCHITECTURES)
def test_greedy_tokens_equal_the_models_own(example, driver, architecture, page_size):
    path = example(architecture)
    for seed in (0, 1, 2):
        drive = driver(path, page_size=page_size, seed=seed)
        assert drive.generate(prompts(0), NEW_TOKENS) == alone(path, 0)


def test_the_oracle_has_something_to_say(example):
    """Equality would prove little if every model repeated one token."""
    for architecture in EXAMPLE_ARCHITECTURES:
        said = {token for answer in alone(example(architecture), 0) for token in answer}
        assert len(said) > 8, architecture
