"""Segments hold every token once, and let it see exactly the keys it may see."""

from __future__ import annotations

from unittest import mock

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from devicekit.memory.rows import RequestTable
from devicekit.runners import plan
from devicekit.scheduling.batch import ForwardBatch

HOST = torch.device("cpu")


def batch_of(spans: list[tuple[int, int]], page_size: int, seed: int) -> ForwardBatch:
    """Sequences given as (positions already stored, new tokens), on shuffled rows and pages."""
    rng = np.random.default_rng(seed)
    ends = [done + new for done, new in spans]
    width = -(-max(ends) // page_size) + 1
    table = RequestTable(39, width)
    table.pages[:] = rng.permutation(np.arange(1, 1 + width * 40)).reshape(40, width)
    rows = rng.permutation(np.arange(1, 40))[: len(spans)].astype(np.int32)
    positions = np.concatenate([np.arange(done, done + new) for done, new in spans]).astype(np.int32)
    owner = np.repeat(rows, [new for _, new in spans])
    pages = table.pages[owner, positions // page_size].astype(np.int64)
    return ForwardBatch(
        input_ids=np.zeros(len(positions), np.int32),
        positions=positions,
        slot_mapping=pages * page_size + positions % page_size,
        req_pool_indices=rows,
        query_start_loc=np.cumsum([0, *(new for _, new in spans)]).astype(np.int32),
        seq_lens=np.array(ends, np.int32),
        table=table,
        page_size=page_size,
        logits_indices=np.zeros(0, np.int32),
    )


def plan_of(batch: ForwardBatch) -> plan.AttentionPlan:
    return plan.AttentionPlan(batch, HOST, torch.from_numpy(batch.table.pages))


@settings(max_examples=150)
@given(
    spans=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), min_size=1, max_size=12),
    page_size=st.sampled_from([1, 4, 16]),
    window=st.sampled_from([None, 1, 3, 16, 1000]),
    max_cells=st.sampled_from([1, 20, 200, 1 << 22]),
    seed=st.integers(0, 9),
)
def test_every_token_sees_its_own_past_and_nothing_else(spans, page_size, window, max_cells, seed):
    batch = batch_of(spans, page_size, seed)
    with mock.patch.object(plan, "MAX_CELLS", max_cells):
        segments = plan_of(batch).segments(window)
    seen: dict[int, list[int]] = {}
    for part in segments:
        for group, queries in enumerate(part.tokens.tolist()):
            for query, token in enumerate(queries):
                slots = part.key_slots[group][part.visible[group, 0, query]].tolist()
                assert seen.setdefault(token, slots) == slots, "padding repeats a token with the same keys"
    assert sorted(seen) == list(range(len(batch.input_ids)))
    for i in range(len(spans)):
        for token in range(batch.query_start_loc[i], batch.query_start_loc[i + 1]):
            position = int(batch.positions[token])
            first = 0 if window is None else max(0, position - window + 1)
            past = np.arange(first, position + 1)
            pages = batch.page_table[batch.req_pool_indices[i], past // page_size].astype(np.int64)
            assert seen[token] == (pages * page_size + past % page_size).tolist()


@settings(max_examples=50)
@given(
    spans=st.lists(st.tuples(st.integers(0, 60), st.integers(1, 30)), min_size=1, max_size=12),
    max_cells=st.sampled_from([20, 200, 1 << 22]),
)
def test_no_slot_is_read_that_belongs_to_nobody(spans, max_cells):
    batch = batch_of(spans, 4, 0)
    owned = {0}
    for row, length in zip(batch.req_pool_indices, batch.seq_lens, strict=True):
        past = np.arange(length)
        owned |= set((batch.page_table[row, past // 4].astype(np.int64) * 4 + past % 4).tolist())
    with mock.patch.object(plan, "MAX_CELLS", max_cells):
        for part in plan_of(batch).segments(None):
            assert set(part.key_slots.reshape(-1).tolist()) <= owned


def test_a_decode_batch_of_like_lengths_is_one_group():
    batch = batch_of([(length, 1) for length in range(50, 80)], 16, 0)
    assert len(plan_of(batch).segments(None)) == 1


def test_one_long_sequence_does_not_pad_the_short_ones():
    batch = batch_of([(2000, 1), *[(10, 1)] * 30], 16, 0)
    cells = sum(part.visible.numel() for part in plan_of(batch).segments(None))
    assert cells < 1.5 * (2001 + 30 * 11)


def test_segments_are_built_once_for_all_layers_with_one_window():
    made = plan_of(batch_of([(20, 5)], 4, 0))
    assert made.segments(8) is made.segments(8)
    assert made.segments(None) is made.segments(100), "a window longer than every sequence is no window"
