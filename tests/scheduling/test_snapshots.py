"""Models with recurrent layers: cached prefixes are continued from copies of the states at their ends."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import devicekit
from devicekit.contract.errors import ConfigurationError
from devicekit.memory.host_kv import HostKVPool
from devicekit.memory.kv import KVPool
from devicekit.memory.pages import PageAllocator
from devicekit.scheduling.batch import ForwardBatch, ModelLimits, StepOutput
from devicekit.scheduling.kv_cache import StateSnapshotManager
from devicekit.scheduling.kv_cache.host_cache import attach_host_cache
from devicekit.scheduling.messages import Flush, Pause, PauseMode
from devicekit.scheduling.request import FinishKind, Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from tests.hash_runner import LAYOUT

VOCABULARY = 89
RUNNING = 4


def folded(state: int, token: int) -> int:
    return (state * 31 + token + 1) % 1_000_003


class RecurrentRunner:
    """Folds tokens into states, in the slots it is told; the next token comes from those and from the pages."""

    limits = ModelLimits(VOCABULARY, 4096, frozenset())

    def __init__(self, pages: int, page_size: int, snapshots: int) -> None:
        self.states = np.full(1 + RUNNING + snapshots, -5)
        self.faults: deque[BaseException | None] = deque()
        self.salt = 0
        self._size = page_size
        self._pool = np.full((pages + 1) * page_size, -7)

    def step(self, batch: ForwardBatch) -> StepOutput:
        assert batch.state_slots is not None
        if batch.restored_states is not None:
            self._copy(batch.restored_states)
        fault = self.faults.popleft() if self.faults else None
        self._pool[batch.slot_mapping] = batch.input_ids
        found, after = [], {}
        for sequence in range(batch.num_sequences):
            slot = int(batch.state_slots[sequence])
            begin, end = int(batch.query_start_loc[sequence]), int(batch.query_start_loc[sequence + 1])
            state = 0 if batch.positions[begin] == 0 else int(self.states[slot])
            for at in range(begin, end):
                state = folded(state, int(batch.input_ids[at]))
                if at in batch.logits_indices:
                    found.append(self._answer(batch, sequence, int(batch.positions[at]), state))
            after[slot] = state
        if fault is not None:
            raise fault
        for slot, state in after.items():
            self.states[slot] = state
        if batch.kept_states is not None:
            self._copy(batch.kept_states)
        return StepOutput(np.array(found, np.int32))

    def _copy(self, pairs: np.ndarray) -> None:
        self.states[pairs[:, 1]] = self.states[pairs[:, 0]]

    def _answer(self, batch: ForwardBatch, sequence: int, position: int, state: int) -> int:
        past = np.arange(position + 1)
        pages = batch.page_table[batch.req_pool_indices[sequence], past // self._size].astype(np.int64)
        seen = self._pool[pages * self._size + past % self._size]
        return (state + int(seen.sum()) + self.salt) % VOCABULARY

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        return iter(())


def alone(prompt: list[int], count: int, salt: int = 0) -> tuple[int, ...]:
    tokens, state = list(prompt), 0
    for token in prompt:
        state = folded(state, token)
    for _ in range(count):
        tokens.append((state + sum(tokens) + salt) % VOCABULARY)
        state = folded(state, tokens[-1])
    return tuple(tokens[len(prompt) :])


def scheduler(
    *, pages: int = 64, page_size: int = 4, snapshots: int = 4, budget: int = 64, caching: bool = True
) -> Scheduler:
    limits = SchedulerLimits(
        num_pages=pages,
        page_size=page_size,
        max_running=RUNNING,
        max_batch_tokens=budget,
        conservativeness=0.05,
        prefix_caching=caching,
        state_snapshots=snapshots,
        checked=True,
    )
    runner = RecurrentRunner(pages, page_size, snapshots)
    return Scheduler(runner, devicekit.get_device("cpu"), limits, states=PageAllocator(RUNNING, checked=True))


def request(name: str, prompt: list[int], count: int = 4) -> Request:
    return Request(name, np.array(prompt), SamplingParams(max_new_tokens=count, temperature=0.0))


def snapshots_of(one: Scheduler) -> StateSnapshotManager:
    layer = one.state.kv.layers[-1]
    assert isinstance(layer, StateSnapshotManager)
    return layer


def runner_of(one: Scheduler) -> RecurrentRunner:
    assert isinstance(one.state.runner, RecurrentRunner)
    return one.state.runner


def finish_all(one: Scheduler) -> dict[str, tuple[tuple[int, ...], int]]:
    """Tokens, and how many of the prompt were cached, of everything that ends."""
    found: dict[str, tuple[tuple[int, ...], int]] = {}
    while one.state.requests:
        for output in one.step().outputs:
            assert output.finish is not None
            assert output.finish.kind is FinishKind.LENGTH, output.finish.message
            found[output.id] = (output.tokens, output.cached_tokens)
    return found


def run(one: Scheduler, prompt: list[int], count: int = 4) -> int:
    """Run one prompt, whose output must be the model's own; how much of it was cached."""
    one.add(request("r", prompt, count))
    tokens, cached = finish_all(one)["r"]
    assert tokens == alone(prompt, count, runner_of(one).salt)
    return cached


PROMPT = list(range(1, 39))  # nine pages of four and a half


def test_a_prompt_is_continued_from_its_last_page_boundary() -> None:
    one = scheduler()
    assert run(one, PROMPT) == 0
    assert run(one, PROMPT) == 36
    assert run(one, [*PROMPT, 70, 71, 72]) == 36
    assert run(one, PROMPT[:36]) == 0, "there is no state of the middle"


def test_a_prompt_of_whole_pages_leaves_one_token_to_compute() -> None:
    one = scheduler()
    assert run(one, PROMPT[:36]) == 0
    assert run(one, PROMPT[:36]) == 32


def test_where_prompts_part_a_state_is_kept_the_second_time() -> None:
    one = scheduler()
    system = PROMPT[:20]
    assert run(one, [*system, *range(50, 60)]) == 0
    assert run(one, [*system, *range(60, 70)]) == 0
    assert run(one, [*system, *range(70, 80)]) == 20
    assert run(one, [*system, *range(60, 70), 3]) == 28


def test_the_snapshot_unused_for_longest_is_given_up_and_its_pages_stay() -> None:
    one = scheduler(snapshots=2)
    first, second, third = ([at, *PROMPT] for at in (40, 41, 42))
    for prompt in (first, second, first, third):
        run(one, prompt)
    prefix = one.state.kv.prefix
    assert prefix is not None
    assert run(one, first) == 36
    assert run(one, third) == 36
    assert prefix.peek(np.array(second, np.int32), (None, 0)) == 36
    assert run(one, second) == 0


def test_a_snapshot_goes_with_its_page() -> None:
    one = scheduler()
    run(one, PROMPT)
    layer, prefix = snapshots_of(one), one.state.kv.prefix
    assert prefix is not None
    assert layer.snapshots.idle == 1
    prefix.evict(2)
    assert layer.snapshots.idle == 0
    assert run(one, PROMPT) == 0


def test_a_flush_takes_back_every_snapshot() -> None:
    one = scheduler()
    run(one, PROMPT)
    one.post(Flush("f"))
    assert one.step().replies[0].success
    found = one.audit().snapshots
    assert found is not None
    assert (found.available, found.total) == (4, 4)
    assert run(one, PROMPT) == 0


def test_states_of_old_weights_are_out_of_reach_and_requests_in_between_share_none() -> None:
    one = scheduler(budget=8)
    run(one, PROMPT)
    one.add(request("between", [*range(50, 80)], 3))
    one.step()
    one.state.requests.weights_changed("v2")
    assert [output.id for _ in range(40) for output in one.step().outputs] == ["between"]
    runner_of(one).salt = 5
    assert snapshots_of(one).snapshots.idle == 1
    assert run(one, PROMPT) == 0
    assert run(one, [*range(50, 80)]) == 0
    assert run(one, PROMPT) == 36


def test_a_pass_that_failed_begins_and_ends_with_the_same_states_when_it_is_run_again() -> None:
    one = scheduler(budget=8)
    run(one, PROMPT)
    out_of_memory = torch.OutOfMemoryError("no memory")
    for at in range(6):
        runner_of(one).faults.extend([*[None] * at, out_of_memory])
        assert run(one, [*PROMPT, *range(40 + at, 60 + at)]) >= 36
        runner_of(one).faults.clear()
        assert one.audit().balanced


def test_an_aborted_prompt_leaves_no_snapshot() -> None:
    one = scheduler(budget=8)
    run(one, PROMPT)
    one.add(request("a", [*PROMPT, *range(60)]))
    for _ in range(3):
        one.step()
    found = one.audit().snapshots
    one.post(Pause("p", PauseMode.ABORT))
    one.step()
    assert found is not None
    after = one.audit().snapshots
    assert after is not None
    assert (after.owned, after.evictable) == (0, 1)


@pytest.mark.parametrize(("snapshots", "caching"), [(0, True), (4, False)])
def test_without_snapshots_or_caching_prefixes_are_not_cached(snapshots: int, caching: bool) -> None:
    one = scheduler(snapshots=snapshots, caching=caching)
    assert one.state.kv.prefix is None
    assert one.audit().snapshots is None
    assert run(one, PROMPT) == run(one, PROMPT) == 0


def test_a_host_tier_is_refused() -> None:
    device = devicekit.get_device("cpu")
    with pytest.raises(ConfigurationError, match="recurrent"):
        attach_host_cache(scheduler(), HostKVPool(device, KVPool(device, LAYOUT, 4, 4), 4))


@settings(max_examples=150)
@given(
    page_size=st.sampled_from([1, 3, 16]),
    pool=st.integers(70, 160),
    snapshots=st.integers(1, 6),
    budget=st.sampled_from([5, 64]),
    lengths=st.lists(
        st.tuples(st.integers(1, 40), st.integers(0, 40), st.integers(1, 25)), min_size=1, max_size=9
    ),
    retract=st.integers(0, 30),
)
def test_tokens_are_those_of_the_model_alone_whatever_is_shared(
    page_size: int,
    pool: int,
    snapshots: int,
    budget: int,
    lengths: list[tuple[int, int, int]],
    retract: int,
) -> None:
    one = scheduler(pages=-(-pool // page_size), page_size=page_size, snapshots=snapshots, budget=budget)
    expected = {}
    for at, (size, shared, count) in enumerate(lengths):
        prompt = [*range(1, min(shared, size)), *(at % 3 + 40 for _ in range(max(1, size - shared)))]
        one.add(request(f"r{at}", prompt, count))
        expected[f"r{at}"] = alone(prompt, count)
    found = {}
    for _ in range(retract):
        found |= {output.id: output.tokens for output in one.step().outputs}
    one.post(Pause("p", PauseMode.RETRACT))
    found |= {output.id: output.tokens for output in one.step().outputs}
    one.state.gate.resume()
    found |= {name: tokens for name, (tokens, _) in finish_all(one).items()}
    assert found == expected
