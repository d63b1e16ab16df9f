"""Models in which some layers look back only so far: those layers' pages are fewer, and come back early."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import devicekit
from devicekit.contract.errors import ConfigurationError
from devicekit.memory.paired_sizing import least_window_pages
from devicekit.scheduling.batch import ForwardBatch, ModelLimits, StepOutput
from devicekit.scheduling.kv_cache import WindowPagesManager
from devicekit.scheduling.messages import Flush, Pause, PauseMode
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from tests.scheduling.greedy import finish_all, request

VOCABULARY = 89


def next_token(everything: list[int], visible: list[int]) -> int:
    value = 7
    for token in (*everything, -1, *visible):
        value = (value * 31 + token) % 1_000_003
    return value % VOCABULARY


class TwoLayerRunner:
    """One layer sees every token and another the last ``window``, each through pages of its own."""

    def __init__(self, window: int, pages: int, window_pages: int, page_size: int) -> None:
        self.limits = ModelLimits(VOCABULARY, 4096, frozenset(), partial_window=window)
        self._window = window
        self._size = page_size
        self._full = np.full((pages + 1) * page_size, -7)
        self._windowed = np.full((window_pages + 1) * page_size, -7)

    def step(self, batch: ForwardBatch) -> StepOutput:
        assert batch.window_pages is not None
        pages, offsets = np.divmod(batch.slot_mapping, self._size)
        assert batch.window_pages[pages].all()
        self._full[batch.slot_mapping] = batch.input_ids
        self._windowed[batch.window_pages[pages] * self._size + offsets] = batch.input_ids
        found = []
        for sequence in range(batch.num_sequences):
            for at in range(batch.query_start_loc[sequence], batch.query_start_loc[sequence + 1]):
                answer = self._answer(batch, int(batch.req_pool_indices[sequence]), int(batch.positions[at]))
                if at in batch.logits_indices:
                    found.append(answer)
        return StepOutput(np.array(found, np.int32))

    def _answer(self, batch: ForwardBatch, row: int, position: int) -> int:
        assert batch.window_pages is not None
        past = np.arange(position + 1)
        pages = batch.page_table[row, past // self._size].astype(np.int64)
        seen = slice(max(0, position - self._window + 1), None)
        windowed = batch.window_pages[pages[seen]].astype(np.int64)
        assert windowed.all(), "every token finds what its window shows"
        return next_token(
            self._full[pages * self._size + past % self._size].tolist(),
            self._windowed[windowed * self._size + past[seen] % self._size].tolist(),
        )

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(())


def alone(prompt: list[int], count: int, window: int) -> tuple[int, ...]:
    tokens = list(prompt)
    for _ in range(count):
        tokens.append(next_token(tokens, tokens[-window:]))
    return tuple(tokens[len(prompt) :])


def scheduler(
    window: int,
    *,
    pages: int,
    page_size: int = 4,
    spare: int = 0,
    caching: bool = True,
    budget: int = 16,
    max_running: int = 5,
    conservativeness: float = 0.05,
) -> Scheduler:
    """A scheduler with as few window pages as it takes, and ``spare`` more."""
    window_pages = min(pages, least_window_pages(window, page_size, budget) + spare)
    runner = TwoLayerRunner(window, pages, window_pages, page_size)
    limits = SchedulerLimits(
        num_pages=pages,
        page_size=page_size,
        max_running=max_running,
        max_batch_tokens=budget,
        prefix_caching=caching,
        conservativeness=conservativeness,
        window_pages=window_pages,
        checked=True,
    )
    return Scheduler(runner, devicekit.get_device("cpu"), limits)


def windows_of(one: Scheduler) -> WindowPagesManager:
    (layer,) = one.state.kv.layers
    assert isinstance(layer, WindowPagesManager)
    return layer


@pytest.mark.parametrize("caching", [True, False])
@pytest.mark.parametrize(("window", "page_size"), [(8, 1), (8, 4), (9, 4), (1, 4), (30, 16)])
def test_a_prompt_and_an_output_of_any_length_run_in_the_fewest_window_pages(
    window: int, page_size: int, caching: bool
) -> None:
    one = scheduler(window, pages=400 // page_size, page_size=page_size, caching=caching)
    prompt = [at % 50 for at in range(190)]
    one.add(request("a", prompt, 150))
    pinned = []
    while one.state.requests:
        for output in one.step().outputs:
            assert output.tokens == alone(prompt, 150, window)
            assert output.retractions == 0
        windows = one.audit().window_pages
        assert windows is not None
        if len(one.state.running):
            pinned.append(windows.owned)
    # With its next page a request lets go of what the chunk looked at.
    behind_the_prompt = pinned[page_size + 1 :]
    assert max(behind_the_prompt) <= -(-window // page_size) + 1
    assert windows_of(one).windows.available == windows_of(one).windows.total


def test_requests_beyond_the_window_pages_wait_or_are_retracted_and_all_end_as_they_would_alone() -> None:
    one = scheduler(8, pages=120, page_size=4, spare=2)
    prompts = {f"r{at}": [at + 1, *range(20 + at)] for at in range(7)}
    for name, prompt in prompts.items():
        one.add(request(name, prompt, 40))
    assert finish_all(one) == {name: alone(prompt, 40, 8) for name, prompt in prompts.items()}


def test_a_prefix_is_reused_as_far_as_its_window_pages_are_there() -> None:
    prompt = list(range(40))
    one = scheduler(8, pages=64, page_size=4, budget=64, max_running=2)
    one.add(request("a", prompt, 4))
    expected = {"a": alone(prompt, 4, 8), "b": alone([*prompt, 60], 4, 8), "c": alone([*prompt, 61], 4, 8)}
    assert finish_all(one)["a"] == expected["a"]
    one.add(request("b", [*prompt, 60], 4))
    first = one.step()
    assert not first.outputs
    assert first.ran == 1, "all ten pages were cached with their windows"
    assert finish_all(one)["b"] == expected["b"]
    layer, prefix = windows_of(one), one.state.kv.prefix
    assert prefix is not None
    cached = np.frombuffer(prefix.match(np.array(prompt, np.int32), (None, 0)).pages, np.int32)
    layer.windows.forget(cached[5:6])  # as if somebody had needed it: what ends behind it can be read no more
    layer.windows.forget(cached[8:9])
    one.add(request("c", [*prompt, 61], 4))
    assert one.step().ran == 41 - 4 * 8  # pages 6 and 7 are all that a window at the end of page 7 shows
    assert finish_all(one)["c"] == expected["c"]


def test_what_was_computed_again_gives_the_cached_pages_their_window_pages_back() -> None:
    prompt = list(range(40))
    one = scheduler(8, pages=64, page_size=4, budget=64, max_running=2)
    one.add(request("a", prompt, 4))
    finish_all(one)
    layer, prefix = windows_of(one), one.state.kv.prefix
    assert prefix is not None
    cached = np.frombuffer(prefix.match(np.array(prompt, np.int32), (None, 0)).pages, np.int32)
    layer.windows.forget(cached)
    one.add(request("b", [*prompt, 60], 4))
    assert one.step().ran == 41
    assert prefix.total == 10
    assert layer.windows.of[cached].all()
    finish_all(one)
    one.add(request("c", [*prompt, 62], 4))
    assert one.step().ran == 1
    assert finish_all(one)["c"] == alone([*prompt, 62], 4, 8)


def test_a_flush_takes_back_every_window_page() -> None:
    one = scheduler(8, pages=64, spare=9)
    one.add(request("a", list(range(40)), 4))
    finish_all(one)
    assert windows_of(one).windows.idle > 0
    one.post(Flush("f"))
    assert one.step().replies[0].success
    windows = one.audit().window_pages
    assert windows is not None
    assert windows.available == windows.total


def test_a_lost_window_page_is_named() -> None:
    one = scheduler(8, pages=64, spare=9)
    lost = windows_of(one).windows.ids.take_one()
    found = one.audit()
    assert found.unbalanced == ("window_pages",)
    assert f"leaked ({lost},)" in str(found)


def test_too_few_window_pages_for_a_long_prompt_are_refused() -> None:
    with pytest.raises(ConfigurationError, match="window pages"):
        scheduler(8, pages=64, spare=-1)


@settings(max_examples=150)
@given(
    window=st.integers(1, 24),
    page_size=st.sampled_from([1, 3, 16]),
    pool=st.integers(70, 160),
    spare=st.integers(0, 20),
    budget=st.sampled_from([5, 64]),
    caching=st.booleans(),
    lengths=st.lists(st.tuples(st.integers(1, 40), st.integers(1, 25)), min_size=1, max_size=7),
    shared=st.integers(0, 40),
    retract=st.integers(0, 30),
)
def test_tokens_are_those_of_the_model_alone_whatever_is_given_back(
    window: int,
    page_size: int,
    pool: int,
    spare: int,
    budget: int,
    caching: bool,
    lengths: list[tuple[int, int]],
    shared: int,
    retract: int,
) -> None:
    pages = -(-pool // page_size)
    one = scheduler(window, pages=pages, page_size=page_size, spare=spare, caching=caching, budget=budget)
    expected = {}
    for at, (size, count) in enumerate(lengths):
        prompt = [*range(1, min(shared, size)), *(at + 40 for _ in range(max(1, size - shared)))]
        one.add(request(f"r{at}", prompt, count))
        expected[f"r{at}"] = alone(prompt, count, window)
    found: dict[str, tuple[int, ...]] = {}
    for _ in range(retract):
        found |= {output.id: output.tokens for output in one.step().outputs}
    one.post(Pause("p", PauseMode.RETRACT))
    found |= {output.id: output.tokens for output in one.step().outputs}
    one.state.gate.resume()
    assert found | finish_all(one) == expected
