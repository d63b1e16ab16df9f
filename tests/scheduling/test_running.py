"""The running batch against a model of it that keeps one list of tokens per request."""

from __future__ import annotations

import random

import numpy as np
import pytest

from devicekit.memory.cells import FEW
from devicekit.memory.pages import PageAllocator
from devicekit.memory.rows import RequestTable
from devicekit.scheduling.request import Request, SamplingParams
from devicekit.scheduling.running import RunningBatch


class Model:
    """Joins, steps and leaves, and what every column must show."""

    def __init__(self, page_size: int, num_pages: int, rows: int, seed: int) -> None:
        self.rng = random.Random(seed)
        self.page_size = page_size
        self.table = RequestTable(rows, 64, 64 * page_size + 1, checked=True)
        self.pages = PageAllocator(num_pages, checked=True)
        self.batch = RunningBatch(self.table, self.pages, page_size)
        self.tokens: dict[str, list[int]] = {}
        self.requests: dict[str, Request] = {}
        self.made = 0

    def join(self, length: int | None = None) -> None:
        length = length or self.rng.randint(1, 3 * self.page_size)
        needed = -(-length // self.page_size)
        if not self.table.available or self.pages.available < needed:
            return
        self.made += 1
        prompt = [self.rng.randrange(100) for _ in range(length)]
        sampled = (
            {"temperature": 0.0} if self.rng.random() < 0.7 else {"temperature": 0.5, "top_k": 3, "seed": 4}
        )
        request = Request(f"r{self.made}", np.array(prompt), SamplingParams(**sampled))
        request.seed = request.params.seed or 0
        request.row = self.table.take_one()
        request.num_pages = needed
        own = self.pages.take_array(needed)
        assert own is not None
        self.table.pages[request.row, :needed] = own
        first = self.rng.randrange(100)
        self.table.tokens[request.row, : length + 1] = [*prompt, first]
        request.total = length + 1
        request.max_total_tokens = length + 1 + self.rng.randint(1, 12)
        self.batch.join(request)
        self.tokens[request.id] = [*prompt, first]
        self.requests[request.id] = request

    def leave(self, identity: str, *, vacate: bool = False) -> None:
        request = self.requests.pop(identity)
        tokens = self.tokens.pop(identity)
        self.batch.vacate(request)
        if not vacate:
            self.batch.close_up()
        assert request.total == len(tokens)
        assert request.computed == len(tokens) - 1
        assert self.table.tokens[request.row, : request.total].tolist() == tokens
        self.pages.give(self.table.pages[request.row, : request.num_pages].copy())
        self.table.give_one(request.row)

    def step(self) -> None:
        needed = sum((len(tokens) - 1) % self.page_size == 0 for tokens in self.tokens.values())
        # A request whose page was given by an earlier, failed step may need none: never more than this.
        assert len(self.batch.full_columns()) <= needed
        before = self.pages.available
        if not self.batch.begin_step():
            assert self.pages.available == before
            self.leave(self.rng.choice(sorted(self.requests)))
            return
        self.check()
        new = [self.rng.randrange(100) for _ in self.requests]
        at_limit = self.batch.end_step(np.array(new, np.int32))
        columns = list(self.batch.requests)
        for request, token in zip(columns, new, strict=True):
            self.tokens[request.id].append(token)
        done = [one.id for one in at_limit]
        expected = {
            one.id for one in self.requests.values() if len(self.tokens[one.id]) >= one.max_total_tokens
        }
        assert set(done) == expected
        together = self.rng.random() < 0.5
        for identity in done:
            self.leave(identity, vacate=together)
        if together:
            for _ in range(self.rng.choice((0, 1, 4))):
                self.join()
            self.batch.close_up()
        assert [one.column for one in self.batch.requests] == list(range(len(self.batch)))

    def check(self) -> None:
        batch, size = self.batch, self.page_size
        slots: set[int] = set()
        for column, request in enumerate(batch.requests):
            tokens = self.tokens[request.id]
            position = len(tokens) - 1
            assert request.column == column
            assert batch.view.tokens[column] == tokens[-1]
            assert batch.view.positions[column] == position
            assert batch.view.lengths[column] == position + 1
            assert batch.view.rows[column] == request.row
            page = self.table.pages[request.row, position // size]
            assert page > 0
            assert batch.view.slots[column] == page * size + position % size
            slots.add(int(batch.view.slots[column]))
        assert len(slots) == len(batch)
        left = sum(one.max_total_tokens - len(self.tokens[one.id]) for one in batch.requests)
        assert batch.remaining_tokens == left


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("num_pages", [40, 400])
@pytest.mark.parametrize("seed", range(3))
def test_every_column_shows_what_its_request_is_at(page_size: int, num_pages: int, seed: int) -> None:
    model = Model(page_size, num_pages, rows=16, seed=seed)
    for _ in range(400):
        for _ in range(model.rng.choice((0, 0, 1, 5))):
            model.join()
        if model.requests and model.rng.random() < 0.1:
            model.leave(model.rng.choice(sorted(model.requests)))
        if model.requests:
            model.step()
    for identity in list(model.requests):
        model.leave(identity)
    assert model.pages.available == num_pages
    assert model.table.available == 16


@pytest.mark.parametrize("page_size", [1, 4, 16])
@pytest.mark.parametrize("count", [FEW, FEW + 1, 2 * FEW])
def test_pages_that_are_full_at_once_are_followed_by_others(page_size: int, count: int) -> None:
    model = Model(page_size, 400, rows=2 * FEW, seed=1)
    for _ in range(count):
        model.join(page_size)
    assert len(model.batch.full_columns()) == count
    while model.requests:
        model.step()


def test_sampling_parameters_stay_with_their_request() -> None:
    from devicekit.scheduling.batch import ForwardBatch

    table, pages = RequestTable(8, 8, 129), PageAllocator(64)
    batch = RunningBatch(table, pages, 16)
    made: list[Request] = []
    for number, temperature in enumerate((0.0, 0.5, 0.0, 0.9, 0.7)):
        params = SamplingParams(temperature=temperature, top_p=0.5 if temperature else 1.0, top_k=number)
        request = Request(f"r{number}", np.ones(3, np.int32), params)
        request.seed, request.row, request.total, request.max_total_tokens = number, table.take_one(), 4, 50
        request.num_pages, request.needs_every_step = 1, temperature > 0
        batch.join(request)
        made.append(request)
    for gone in (made[1], made[4]):
        batch.vacate(gone)
        batch.close_up()
    assert batch.begin_step()
    forward = ForwardBatch.__new__(ForwardBatch)
    batch.sampling.fill(forward, batch.view.positions, [])
    assert forward.sampling is not None
    for column, request in enumerate(batch.requests):
        assert forward.sampling.temperature[column] == pytest.approx(request.params.temperature)
        if request.params.temperature:
            assert forward.sampling.top_k[column] == request.params.top_k
            assert forward.sampling.seed[column] == request.seed
    batch.vacate(made[3])
    batch.close_up()
    assert batch.begin_step()
    forward.sampling = None
    batch.sampling.fill(forward, batch.view.positions, [])
    assert forward.sampling is None  # what is left is greedy, and carries no parameters
