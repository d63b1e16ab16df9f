"""Greedy tokens are those of the model run alone, whatever the engine did on the way: the oracle of the whole.

Every pair of choices (of architecture, page size, chunking, prefix cache, pool size, policy) is run at least once;
with ``EQUALITY=full`` in the environment, every combination is.
"""

from __future__ import annotations

import itertools
import os
import random
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest

import devicekit
from devicekit.device import Device
from devicekit.engine import Engine, EngineConfig
from devicekit.memory.paired_sizing import least_window_pages
from devicekit.registry import unregister_backend
from devicekit.runners.transformers_runner import TransformersRunner
from devicekit.scheduling.request import SamplingParams
from devicekit.testing import simulation
from devicekit.testing.sim_backend import register
from examples.checkpoints import write_example_checkpoint
from tests.oracle import own_answers

ARCHITECTURES = (
    "llama",
    "qwen3",
    "mistral",
    "gemma2",
    "gpt_oss",
    "gpt2",
    "mixtral",
    "deepseek_v3",
    "lfm2",
    "qwen3_next",
)
RECURRENT = ("lfm2", "qwen3_next")
WINDOWED = ("mistral",)  # in every layer
ALTERNATING = ("gemma2", "gpt_oss")  # in every other layer
WINDOW = 8
NEW_TOKENS = 24
SHARED = 34  # tokens that some prompts begin with: two pages of 16 and a bit
GREEDY = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)


class Case(NamedTuple):
    architecture: str
    page_size: int
    batch_tokens: int  # below the length of most prompts: they are computed in chunks
    caching: str  # of prefixes: not at all, on the device, or on the host as well
    pool: int  # tokens; the smaller one holds hardly two requests
    policy: str

    def __str__(self) -> str:
        return "-".join(map(str, self))


CHOICES = (
    ARCHITECTURES,
    (1, 16),
    (13, 512),
    ("uncached", "cached", "hosted"),
    (112, 2048),
    ("fcfs", "priority", "longest_prefix"),
)
EVERY = [Case(*values) for values in itertools.product(*CHOICES)]
FULL = [case for case in EVERY if case.caching != "hosted" or case.architecture not in RECURRENT]


def pairs(case: Case) -> set[tuple[tuple[int, object], ...]]:
    return set(itertools.combinations(enumerate(case), 2))


def every_pair() -> list[Case]:
    """A few combinations in which each two choices meet: the one that adds most pairs, again and again."""
    missing = set().union(*map(pairs, FULL))
    chosen: list[Case] = []
    while missing:
        chosen.append(max(FULL, key=lambda case: len(pairs(case) & missing)))
        missing -= pairs(chosen[-1])
    return chosen


CASES = FULL if os.environ.get("EQUALITY") == "full" else every_pair()


def prompts() -> list[list[int]]:
    rng = random.Random(7)
    shared = [rng.randrange(1, 380) for _ in range(SHARED)]
    alone = [[rng.randrange(1, 380) for _ in range(length)] for length in (1, 7, 16, 33)]
    longer = [shared + [rng.randrange(1, 380) for _ in range(length)] for length in (3, 9, 3)]
    return [shared, *alone, *longer]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    folder = tmp_path_factory.mktemp("equality")
    return cache(
        lambda architecture: write_example_checkpoint(
            folder / architecture, seed=1, architecture=architecture
        )
    )


@pytest.fixture(scope="module")
def alone(checkpoint: Callable[[str], Path]) -> Callable[[str], list[list[int]]]:
    """What the model's own generate answers, one prompt at a time."""
    return cache(lambda architecture: own_answers(checkpoint(architecture), prompts(), NEW_TOKENS))


@pytest.fixture(scope="module")
def runner(checkpoint: Callable[[str], Path]) -> Callable[[str], TransformersRunner]:
    device = devicekit.get_device("cpu")
    return cache(lambda architecture: TransformersRunner.load(checkpoint(architecture), device))


def serve(runner: TransformersRunner, device: Device, case: Case) -> Engine:
    window_tokens = None
    if (
        case.architecture in ALTERNATING and case.caching != "hosted"
    ):  # as few as it takes, where that is fewer
        window_tokens = least_window_pages(WINDOW, case.page_size, case.batch_tokens) * case.page_size
    config = EngineConfig(
        page_size=case.page_size,
        max_running=4,
        max_batch_tokens=case.batch_tokens,
        kv_tokens=case.pool,
        prefix_caching=case.caching != "uncached",
        host_kv_tokens=1024 if case.caching == "hosted" else 0,
        window_kv_tokens=window_tokens,
        policy=case.policy,
        conservativeness=0.05,  # admit what fits now: a small pool then runs out later
        checked=True,  # and every pool is audited after every step
    )
    return Engine(runner, device, config)


def check(engine: Engine, case: Case, expected: list[list[int]]) -> None:
    generations = [engine.submit(prompt, GREEDY, priority=at % 3) for at, prompt in enumerate(prompts())]
    while not all(generation.done for generation in generations):
        engine.step()
    assert [generation.tokens for generation in generations] == expected
    retracted = sum(generation.retractions for generation in generations)
    if case.architecture not in WINDOWED and engine.plan.window_pages is None:
        assert bool(retracted) == (case.pool < 1000)
    cached = sum(generation.cached_tokens for generation in generations)
    if case.architecture in RECURRENT and case.caching != "uncached" and not cached:
        # The states of those that came first were not yet there when the others came.
        (again,) = engine.generate([prompts()[-1]], GREEDY)
        assert again.tokens == expected[-1]
        cached = again.cached_tokens
    assert bool(cached) == (case.caching != "uncached")
    assert (engine.scheduler.state.kv.tier is not None) == (case.caching == "hosted")
    found = engine.audit()
    assert found.balanced
    assert found.pages.available + found.pages.evictable == engine.plan.num_pages
    for hung in (found.window_pages, found.snapshots):
        assert hung is None or hung.available + hung.evictable == hung.total


@pytest.mark.parametrize("case", CASES, ids=str)
def test_tokens_are_the_models_own(
    case: Case,
    runner: Callable[[str], TransformersRunner],
    alone: Callable[[str], list[list[int]]],
) -> None:
    engine = serve(runner(case.architecture), devicekit.get_device("cpu"), case)
    check(engine, case, alone(case.architecture))


def test_the_oracle_has_something_to_say(alone: Callable[[str], list[list[int]]]) -> None:
    """Equality would prove little if a model repeated one token."""
    for architecture in ARCHITECTURES:
        assert min(len(set(answer)) for answer in alone(architecture)) > 3, architecture


@pytest.fixture
def accelerator() -> Iterator[Device]:
    with simulation():
        register()
        yield devicekit.get_device("sim")
        unregister_backend("sim")


@pytest.mark.parametrize(
    "case",
    [
        Case("llama", 16, 13, "cached", 112, "fcfs"),
        Case("mistral", 1, 512, "hosted", 112, "priority"),
        Case("gemma2", 16, 13, "cached", 112, "fcfs"),
        Case("lfm2", 16, 13, "cached", 2048, "longest_prefix"),
    ],
    ids=str,
)
def test_tokens_are_the_models_own_on_an_accelerator(
    case: Case,
    checkpoint: Callable[[str], Path],
    alone: Callable[[str], list[list[int]]],
    accelerator: Device,
) -> None:
    expected = alone(case.architecture)
    runner = TransformersRunner.load(checkpoint(case.architecture), accelerator)
    check(serve(runner, accelerator, case), case, expected)
