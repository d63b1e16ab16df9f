from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from devicekit.memory.errors import DoubleFree
from devicekit.memory.mirror import TableMirror
from devicekit.memory.rows import RequestTable

CPU = torch.device("cpu")


def test_row_zero_is_padding_and_never_handed_out() -> None:
    table = RequestTable(5, 8)
    assert table.pages.shape == (6, 8)
    assert sorted(table.take_one() for _ in range(5)) == [1, 2, 3, 4, 5]
    assert table.take_one() == 0
    assert table.generation[0] == 0
    assert not table.pages[0].any()


def test_a_row_given_back_can_be_taken_again() -> None:
    table = RequestTable(1, 4)
    row = table.take_one()
    table.give_one(row)
    assert table.available == 1
    assert table.take_one() == row


def test_generations_grow_at_every_hand_out_and_survive_reset() -> None:
    table = RequestTable(2, 4)
    first = table.take_one()
    seen = int(table.generation[first])
    table.reset()
    assert table.available == 2
    rows = {table.take_one(), table.take_one()}
    assert rows == {1, 2}
    assert table.generation[first] == seen + 1


def test_a_checked_table_finds_a_row_given_back_twice() -> None:
    table = RequestTable(4, 4, checked=True)
    row = table.take_one()
    table.give_one(row)
    with pytest.raises(DoubleFree):
        table.give_one(row)


def test_a_table_without_room_for_a_page_is_refused() -> None:
    with pytest.raises(ValueError, match="pages_per_row"):
        RequestTable(4, 0)


def test_a_mirror_uploads_only_the_marked_rows() -> None:
    table = RequestTable(100, 16)
    mirror = TableMirror(table, CPU)
    assert mirror.sync() == 0
    table.pages[7] = 70
    table.pages[9] = 90
    for row in (7, 9, 9):
        table.mark_dirty(row)
    table.pages[8] = 80  # not marked: stays behind
    assert mirror.sync() == 2
    assert mirror.tensor[7].eq(70).all()
    assert mirror.tensor[9].eq(90).all()
    assert mirror.tensor[8].eq(0).all()
    assert mirror.sync() == 0


def test_a_mirror_uploads_only_the_blocks_around_marked_columns() -> None:
    table = RequestTable(10, 640)
    mirror = TableMirror(table, CPU)
    table.pages[:] = 7
    table.mark_cells_dirty(np.array([3 * 640 + 100, 4 * 640 + 639]))
    assert mirror.sync() == 2
    assert mirror.tensor[3].nonzero().flatten().tolist() == list(range(64, 128))
    assert mirror.tensor[4].nonzero().flatten().tolist() == list(range(576, 640))
    assert mirror.tensor.count_nonzero() == 128
    assert mirror.sync() == 0


@pytest.mark.parametrize("pages_per_row", [1, 7, 64, 100, 320])
def test_a_mirror_equals_its_table_at_every_width(pages_per_row: int) -> None:
    rng = np.random.default_rng(2)
    table = RequestTable(20, pages_per_row)
    mirror = TableMirror(table, CPU)
    for value in range(1, 30):
        rows = rng.integers(1, 21, 5)
        columns = rng.integers(0, pages_per_row, 5)
        table.pages[rows, columns] = value
        table.mark_cells_dirty(rows * pages_per_row + columns)
        if value % 3:
            mirror.sync()
    mirror.sync()
    assert np.array_equal(mirror.tensor.numpy(), table.pages)


def test_marking_the_first_pages_of_a_row_uploads_their_blocks_only() -> None:
    table = RequestTable(10, 640)
    mirror = TableMirror(table, CPU)
    table.pages[:] = 7
    table.mark_dirty(3, 65)
    assert mirror.sync() == 1
    assert mirror.tensor[3].nonzero().flatten().tolist() == list(range(128))
    assert mirror.tensor.count_nonzero() == 128


def test_a_mirror_that_is_seldom_synced_forgets_nothing() -> None:
    table = RequestTable(4, 128)
    mirror = TableMirror(table, CPU)
    for number in range(10_000):
        row, column = 1 + number % 3, number % 128
        table.pages[row, column] = number
        table.mark_cells_dirty(np.array([row * 128 + column]))
    assert mirror.sync() == 3
    assert np.array_equal(mirror.tensor.numpy(), table.pages)


def test_a_mirror_keeps_its_tensor() -> None:
    table = RequestTable(10, 4)
    mirror = TableMirror(table, CPU)
    address = mirror.tensor.data_ptr()
    table.pages[1] = 5
    table.mark_dirty(1)
    mirror.sync()
    assert mirror.tensor.data_ptr() == address


def test_two_mirrors_follow_one_table_each_at_its_own_pace() -> None:
    table = RequestTable(10, 4)
    early = TableMirror(table, CPU)
    table.pages[1] = 1
    table.mark_dirty(1)
    assert early.sync() == 1
    late = TableMirror(table, CPU)
    table.pages[2] = 2
    table.mark_dirty(2)
    assert early.sync() == 1
    assert late.sync() == 2
    assert torch.equal(early.tensor, late.tensor)
    assert np.array_equal(early.tensor.numpy(), table.pages)


class TableMachine(RuleBasedStateMachine):
    """Rows in and out, pages written and marked, a mirror synced at random moments."""

    def __init__(self) -> None:
        super().__init__()
        self.table = RequestTable(12, 5, checked=True)
        self.mirror = TableMirror(self.table, CPU)
        self.out: dict[int, int] = {}
        self.dirty: set[int] = set()
        self.value = 0

    @rule()
    def take(self) -> None:
        row = self.table.take_one()
        assert (row == 0) == (len(self.out) == 12)
        assert row not in self.out
        if row:
            self.out[row] = int(self.table.generation[row])

    @precondition(lambda self: self.out)
    @rule(data=st.data())
    def give(self, data: st.DataObject) -> None:
        row = data.draw(st.sampled_from(sorted(self.out)))
        assert self.table.generation[row] == self.out.pop(row)
        self.table.give_one(row)

    @precondition(lambda self: self.out)
    @rule(data=st.data(), cells=st.booleans())
    def write(self, data: st.DataObject, cells: bool) -> None:
        rows = np.array(data.draw(st.lists(st.sampled_from(sorted(self.out)))), np.int64)
        self.value += 1
        self.table.pages[rows, self.value % 5] = self.value
        if cells:
            self.table.mark_cells_dirty(rows * 5 + self.value % 5)
        else:
            for row in rows.tolist():
                self.table.mark_dirty(row)
        self.dirty |= set(rows.tolist())

    @rule()
    def sync(self) -> None:
        assert self.mirror.sync() == len(self.dirty)
        self.dirty = set()
        assert np.array_equal(self.mirror.tensor.numpy(), self.table.pages)

    @rule()
    def reset(self) -> None:
        self.table.reset()
        self.out = {}

    @invariant()
    def conserves(self) -> None:
        assert self.table.available + len(self.out) == 12


TestTableMachine = TableMachine.TestCase
TestTableMachine.settings = settings(max_examples=50, stateful_step_count=40)
