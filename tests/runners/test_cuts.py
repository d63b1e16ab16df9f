"""A whole and its parts: every part is what the rank's heads need, and all of them make the whole again."""

from __future__ import annotations

import pytest
import torch

from devicekit.runners.cuts import Cut, even, kv_heads, packed

CUTS = [
    even(0, 12, 4),
    even(1, 10, 4),  # of which the last two have fewer
    even(0, 3, 4),  # of which one has none
    packed(1, 24, 3, 2),
    kv_heads(0, 8, 2, 8, 4),
    kv_heads(1, 6, 4, 4, 2),
    kv_heads(0, 5, 5, 5, 1),
    kv_heads(0, 12, 2, 6, 3),
]


@pytest.mark.parametrize("cut", CUTS, ids=str)
def test_the_parts_of_all_ranks_make_the_whole_again(cut: Cut) -> None:
    shape = [7, 7]
    shape[cut.dim] = cut.size
    whole = torch.randn(shape)
    parts = [cut.part(whole, rank) for rank in range(len(cut.runs))]
    assert [part.shape[cut.dim] for part in parts] == [cut.length(rank) for rank in range(len(parts))]
    assert torch.equal(cut.assemble(parts), whole)


def test_packed_parts_hold_the_same_rows_of_each_block() -> None:
    gate_and_up = torch.arange(8)
    assert packed(0, 8, 2, 2).part(gate_and_up, 1).tolist() == [2, 3, 6, 7]


@pytest.mark.parametrize(
    ("ranks", "heads", "kv", "expected"),
    [
        (2, 8, 4, [[0, 1], [2, 3]]),
        (4, 8, 2, [[0], [0], [1], [1]]),
        (2, 4, 1, [[0], [0]]),
        (2, 6, 3, [[0, 0, 1], [1, 2, 2]]),  # three query heads of a rank, and not as many for each key head
        (3, 12, 2, [[0, 0], [0, 1], [1, 1]]),
    ],
)
def test_each_query_head_finds_its_key_head_on_its_rank(
    ranks: int, heads: int, kv: int, expected: list[list[int]]
) -> None:
    cut = kv_heads(0, kv, ranks, heads, kv)
    found = [cut.part(torch.arange(kv), rank).tolist() for rank in range(ranks)]
    assert found == expected
    for rank, local in enumerate(found):
        each = heads // ranks // len(local)
        queries = range(rank * heads // ranks, (rank + 1) * heads // ranks)
        assert [one // (heads // kv) for one in queries] == [one for one in local for _ in range(each)]
