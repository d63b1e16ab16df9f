"""Several completions of one prompt: each is what it would be alone, and the prompt is computed once."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from devicekit.engine import Engine, EngineConfig, Generation
from devicekit.scheduling.errors import InvalidRequest
from devicekit.scheduling.messages import Abort, AbortReply
from devicekit.scheduling.request import FinishKind, SamplingParams
from examples.checkpoints import write_example_checkpoint

PROMPT = list(range(20, 70))
PARAMS = SamplingParams(max_new_tokens=12, temperature=1.0, seed=40, ignore_eos=True)


@pytest.fixture
def open_engine(checkpoints: tuple[Path, Path]) -> Callable[..., Engine]:
    def make(path: Path = checkpoints[0], **settings: int | bool) -> Engine:
        return Engine.open(path, "cpu", config=EngineConfig(max_running=8, checked=True, **settings))

    return make


def wait(engine: Engine, generations: list[Generation]) -> int:
    """Step until all are done; how many tokens were computed."""
    computed = 0
    while not all(generation.done for generation in generations):
        computed += engine.step().ran
    return computed


def test_each_sample_is_the_completion_of_its_own_seed(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine()
    samples = engine.submit_samples(PROMPT, 4, PARAMS, request_id="s")
    wait(engine, samples)
    assert [one.id for one in samples] == ["s_0", "s_1", "s_2", "s_3"]
    alone = [engine.generate([PROMPT], PARAMS, seed=seed)[0].tokens for seed in (40, 41, 42, 43)]
    assert [one.tokens for one in samples] == alone
    assert len({tuple(one.tokens) for one in samples}) == 4


def finished(engine: Engine, params: SamplingParams) -> list[Generation]:
    samples = engine.submit_samples(PROMPT, 2, params, request_id="x")
    wait(engine, samples)
    return samples


@pytest.mark.parametrize("budget", [16, 512])
def test_the_prompt_is_computed_once(open_engine: Callable[..., Engine], budget: int) -> None:
    engine = open_engine(max_batch_tokens=budget)
    samples = engine.submit_samples(PROMPT, 4, PARAMS)
    computed = wait(engine, samples)
    full_pages = (len(PROMPT) - 1) // 16 * 16
    assert [one.cached_tokens for one in samples] == [0, full_pages, full_pages, full_pages]
    assert computed == len(PROMPT) + 3 * (len(PROMPT) - full_pages) + 4 * 11


def test_without_a_prefix_cache_they_do_not_wait_for_each_other(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(prefix_caching=False)
    samples = engine.submit_samples(PROMPT, 4, PARAMS)
    engine.step()
    assert len(engine.scheduler.state.running) == 4
    wait(engine, samples)
    alone = [engine.generate([PROMPT], PARAMS, seed=seed)[0].tokens for seed in (40, 41, 42, 43)]
    assert [one.tokens for one in samples] == alone


def test_samples_of_a_recurrent_model_are_its_completions_too(
    open_engine: Callable[..., Engine], tmp_path: Path
) -> None:
    engine = open_engine(write_example_checkpoint(tmp_path, seed=1, architecture="lfm2"))
    samples = engine.submit_samples(PROMPT, 3, PARAMS)
    wait(engine, samples)
    for at, one in enumerate(samples):
        assert one.tokens == engine.generate([PROMPT], PARAMS, seed=40 + at)[0].tokens


def test_one_sample_can_end_without_the_others(open_engine: Callable[..., Engine]) -> None:
    engine = open_engine(max_batch_tokens=16)
    samples = engine.submit_samples(PROMPT, 3, PARAMS, request_id="s")
    engine.step()
    assert engine.abort("s_0").aborted == 1  # the one whose prompt is being computed
    wait(engine, samples)
    assert samples[0].finish is not None
    assert samples[0].finish.kind is FinishKind.ABORT
    assert [len(one.tokens) for one in samples[1:]] == [12, 12]
    again = engine.submit_samples(PROMPT, 3, PARAMS, request_id="s")
    engine.step()
    assert engine.perform(Abort("a", prefix="s_"), AbortReply).aborted == 3
    assert all(one.done for one in again)


def test_without_a_seed_samples_and_engines_differ_unless_the_engine_has_one(
    open_engine: Callable[..., Engine],
) -> None:
    params = SamplingParams(max_new_tokens=12, ignore_eos=True)
    first, second = ([one.tokens for one in finished(open_engine(), params)] for _ in range(2))
    assert first != second
    assert len({tuple(tokens) for tokens in first}) == len(first)
    alike = ([one.tokens for one in finished(open_engine(random_seed=5), params)] for _ in range(2))
    assert next(alike) == next(alike)


@pytest.mark.parametrize(
    ("n", "params", "reason"),
    [
        (0, PARAMS, "at least 1, not 0"),
        (2, SamplingParams(max_new_tokens=-1), "max_new_tokens"),
        (2, SamplingParams(seed=2**63 - 1), "seed must fit 64 bits"),
    ],
)
def test_samples_that_cannot_run_are_refused_together(
    open_engine: Callable[..., Engine], n: int, params: SamplingParams, reason: str
) -> None:
    engine = open_engine()
    with pytest.raises(InvalidRequest, match=reason):
        engine.submit_samples(PROMPT, n, params)
    assert engine.blockers() == ()
    assert engine.audit().balanced
