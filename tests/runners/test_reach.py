"""Tokens with many keys read them where they lie: each exactly once, whatever pages they are in."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from devicekit.runners import reach as reading
from devicekit.runners.plan import AttentionPlan
from tests.oracle import own_answers
from tests.runners.test_plan import HOST, batch_of

NEW_TOKENS = 12


@pytest.fixture(autouse=True)
def _short_is_long(monkeypatch):
    """The models here see 512 tokens: runs and contexts count as long early."""
    monkeypatch.setattr(reading, "LONG_RUN", 64)
    monkeypatch.setattr(reading, "LONG_REACH", 96)


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    spans=st.lists(st.tuples(st.integers(0, 400), st.sampled_from([1, 1, 1, 7])), min_size=1, max_size=6),
    page_size=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([None, 1, 16, 100, 250, 1000]),
    cuts=st.lists(st.integers(0, 400), max_size=5),
    elsewhere=st.booleans(),
    seed=st.integers(0, 9),
)
def test_every_token_sees_its_own_past_and_nothing_else(spans, page_size, window, cuts, elsewhere, seed):
    batch = batch_of(spans, page_size, seed)
    width = batch.table.pages.shape[1]
    pages = np.arange(1, batch.table.pages.size + 1).reshape(-1, width)  # all neighbours
    for cut in cuts:  # but for these
        pages[:, cut % width] = pages[::-1, cut % width]
    batch.table.pages[:] = pages
    if elsewhere:
        batch.window_pages = np.random.default_rng(seed).permutation(pages.size + 1).astype(np.int32)
    made = AttentionPlan(batch, HOST, torch.from_numpy(batch.table.pages), in_place=True)
    grouped = {token for part in made.segments(window) for token in part.tokens.reshape(-1).tolist()}
    reaches = made.reaches(window)
    alone = [reach.token for reach in reaches]
    assert sorted([*grouped, *alone]) == list(range(len(batch.input_ids)))
    for reach in reaches:
        sequence = int(np.searchsorted(batch.query_start_loc, reach.token, "right")) - 1
        past = np.arange(batch.seq_lens[sequence])[-(window or 0) :]
        found = batch.table.pages[batch.req_pool_indices[sequence], past // page_size]
        if elsewhere and window is not None:
            found = batch.window_pages[found]
        seen = [slot for run in reach.runs for slot in range(run.start, run.stop)]
        seen += [] if reach.scattered is None else reach.scattered.tolist()
        assert sorted(seen) == sorted((found.astype(np.int64) * page_size + past % page_size).tolist())
        assert len(past) >= 96
        assert all(run.stop - run.start >= 64 for run in reach.runs)


def test_neighbouring_pages_are_not_copied():
    batch = batch_of([(1000, 1)], 16, 0)
    batch.table.pages[:] = np.arange(1, batch.table.pages.size + 1).reshape(batch.table.pages.shape)
    (reach,) = AttentionPlan(batch, HOST, torch.from_numpy(batch.table.pages), in_place=True).reaches(None)
    assert reach.scattered is None
    assert [run.stop - run.start for run in reach.runs] == [1001]


@pytest.mark.parametrize("neighbours", [1, 8, 256])
@pytest.mark.parametrize("architecture", ["llama", "gemma2", "gpt_oss", "mistral"])
def test_long_contexts_give_the_models_own_tokens(example, driver, architecture, neighbours):
    path = example(architecture)
    rng = np.random.default_rng(5)
    prompts = [rng.integers(1, 384, length).tolist() for length in (90, 150, 333)]
    drive = driver(path, page_size=4, seed=3, neighbours=neighbours)
    assert drive.generate(prompts, NEW_TOKENS) == own_answers(path, prompts, NEW_TOKENS)
