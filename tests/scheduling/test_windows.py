"""Models that look back only so far: pages nobody can see any more come back while the request runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import devicekit
from devicekit.engine import Engine, EngineConfig
from devicekit.scheduling.batch import ForwardBatch, ModelLimits, StepOutput
from devicekit.scheduling.request import SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from examples.checkpoints import write_example_checkpoint
from tests.scheduling.greedy import finish_all, request

VOCABULARY = 89


def next_token(visible: list[int]) -> int:
    value = 7
    for token in visible:
        value = (value * 31 + token) % 1_000_003
    return value % VOCABULARY


class WindowRunner:
    """A model whose next token depends on each of the last ``window`` tokens, read from the pool's pages."""

    def __init__(self, window: int, slots: int) -> None:
        self.limits = ModelLimits(VOCABULARY, 4096, frozenset(), window=window)
        self._window = window
        self._pool = np.full(slots, -1)

    def step(self, batch: ForwardBatch) -> StepOutput:
        self._pool[batch.slot_mapping] = batch.input_ids
        found = []
        for at in batch.logits_indices.tolist():
            sequence = int(np.searchsorted(batch.query_start_loc, at, side="right")) - 1
            position = int(batch.positions[at])
            seen = np.arange(max(0, position - self._window + 1), position + 1)
            pages = batch.page_table[batch.req_pool_indices[sequence], seen // batch.page_size].astype(
                np.int64
            )
            assert pages.all()
            found.append(next_token(self._pool[pages * batch.page_size + seen % batch.page_size].tolist()))
        return StepOutput(np.array(found, np.int32))

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(())


def alone(prompt: list[int], count: int, window: int) -> tuple[int, ...]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens[-window:]))
    return tuple(tokens[len(prompt) :])


def scheduler(
    window: int,
    *,
    pages: int,
    page_size: int,
    caching: bool,
    budget: int = 64,
    conservativeness: float = 0.05,
) -> Scheduler:
    runner = WindowRunner(window, (pages + 1) * page_size)
    limits = SchedulerLimits(
        num_pages=pages,
        page_size=page_size,
        max_running=5,
        max_batch_tokens=budget,
        prefix_caching=caching,
        conservativeness=conservativeness,
        checked=True,
    )
    return Scheduler(runner, devicekit.get_device("cpu"), limits)


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize(("window", "page_size"), [(8, 1), (8, 4), (9, 4), (30, 16)])
def test_a_long_generation_holds_no_more_than_its_window(window: int, page_size: int, caching: bool) -> None:
    length = 400
    one = scheduler(window, pages=500 // page_size, page_size=page_size, caching=caching)
    one.add(request("a", [3, 1, 4], length))
    held = []
    while one.state.requests:
        one.step()
        held.append(sum(len(one.state.kv.owned(each)) for each in one.state.running.requests))
    assert max(held) <= -(-window // page_size) + 2
    assert one.state.kv.available == 500 // page_size


def test_a_real_model_runs_on_in_a_few_pages(tmp_path: Path) -> None:
    path = write_example_checkpoint(tmp_path, seed=1, architecture="mistral")  # a window of 8 tokens
    config = EngineConfig(page_size=4, kv_tokens=320, prefix_caching=False, checked=True)
    engine = Engine.open(path, "cpu", config=config)
    generation = engine.submit(
        [5, 6, 7, 8], SamplingParams(max_new_tokens=300, temperature=0.0, ignore_eos=True)
    )
    most = 0
    while not generation.done:
        engine.step()
        most = max(most, engine.scheduler.state.kv.pages.in_use)
    assert len(generation.tokens) == 300  # which would be 76 pages
    assert most == 3


def test_together_they_fit_a_pool_that_would_hold_one_without_windows() -> None:
    one = scheduler(8, pages=30, page_size=4, caching=False, conservativeness=1.0)
    prompts = {f"r{at}": [at + 1, at + 2] for at in range(5)}
    for name, prompt in prompts.items():
        one.add(request(name, prompt, 110))  # 28 pages each, were all of them kept
    together = 0
    retractions = 0
    while one.state.requests:
        outputs = one.step().outputs
        together = max(together, len(one.state.running))
        for output in outputs:
            assert output.tokens == alone(prompts[output.id], 110, 8)
            retractions += output.retractions
    assert together == 5
    assert retractions == 0


def test_what_a_request_shared_may_be_evicted_once_it_is_out_of_its_window_and_not_before() -> None:
    one = scheduler(8, pages=64, page_size=4, caching=True)
    prefix = one.state.kv.prefix
    assert prefix is not None
    one.add(request("a", list(range(1, 14)), 60))
    one.step()
    assert prefix.protected == 3
    while prefix.protected:
        assert one.state.running.requests[0].dropped_pages == 0
        one.step()
    assert prefix.evictable == 3
    assert one.state.running.requests[0].dropped_pages > 3
    one.add(request("b", list(range(1, 14)), 5))
    found = finish_all(one)
    assert found["a"] == alone(list(range(1, 14)), 60, 8)
    assert found["b"] == alone(list(range(1, 14)), 5, 8)
    assert prefix.stats.hit_tokens >= 12


@settings(max_examples=60)
@given(
    window=st.integers(1, 24),
    page_size=st.sampled_from([1, 3, 16]),
    pool=st.integers(70, 160),
    budget=st.sampled_from([5, 64]),
    caching=st.booleans(),
    lengths=st.lists(st.tuples(st.integers(1, 30), st.integers(1, 40)), min_size=1, max_size=7),
    shared=st.integers(0, 30),
)
def test_tokens_are_those_of_the_window_whatever_is_given_back(
    window: int,
    page_size: int,
    pool: int,
    budget: int,
    caching: bool,
    lengths: list[tuple[int, int]],
    shared: int,
) -> None:
    one = scheduler(window, pages=-(-pool // page_size), page_size=page_size, caching=caching, budget=budget)
    expected = {}
    for at, (size, count) in enumerate(lengths):
        prompt = [*range(1, min(shared, size)), *(at + 40 for _ in range(max(1, size - shared)))]
        one.add(request(f"r{at}", prompt, count))
        expected[f"r{at}"] = alone(prompt, count, window)
    assert finish_all(one) == expected
