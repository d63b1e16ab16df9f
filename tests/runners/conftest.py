"""Checkpoints made once per run, and a driver that schedules badly on purpose."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from devicekit.memory.kv import KVPool
from devicekit.memory.rows import RequestTable
from devicekit.memory.state import StatePool
from devicekit.runners.transformers_runner import TransformersRunner
from devicekit.scheduling.batch import ForwardBatch, SamplingArrays, StepOutput
from examples.checkpoints import write_example_checkpoint

Example = Callable[..., Path]


@dataclass(frozen=True)
class HostDevice:
    """All that runners and pools ask of a device."""

    torch_device: torch.device = field(default_factory=lambda: torch.device("cpu"))


@dataclass
class Sequence_:
    row: int
    tokens: list[int]
    prompt: int
    done: int = 0  # tokens whose keys and values are in the pool
    temperature: float = 0.0
    seed: int = 0

    @property
    def generated(self) -> list[int]:
        return self.tokens[self.prompt :]


class Driver:
    """Runs prompts to a length in random chunks, in random company, on shuffled pages full of garbage.

    ``neighbours`` pages follow one another before the next are somewhere else.
    """

    def __init__(
        self, runner: TransformersRunner, *, page_size: int, seed: int, pages: int = 256, neighbours: int = 1
    ) -> None:
        self.runner = runner
        self.rng = np.random.default_rng(seed)
        self.page_size = page_size
        self.pool = KVPool(runner.device, runner.layout, pages, page_size)
        for layer in range(runner.layout.num_layers):
            self.pool.key(layer)[page_size:] = float("nan")
            self.pool.value(layer)[page_size:] = float("nan")
        self.states = None if runner.states is None else StatePool(runner.device, runner.states, 31)
        for state in () if self.states is None else runner.states.tensors:
            self.states.tensor(state.layer, state.name)[:] = float("nan")
        runner.bind(self.pool, self.states)
        self.slots: dict[int, int] = {}  # state slot by row
        blocks = np.arange(1, pages + 1).reshape(-1, neighbours)
        self.free = self.rng.permutation(blocks).reshape(-1)[::-1].tolist()
        # Entries that nobody set must never be read, so they name pages that do not exist.
        self.table = RequestTable(31, pages)
        self.table.pages[:] = 1 << 30
        self.rows = list(self.rng.permutation(np.arange(1, 32)))

    def add(self, prompt: Sequence[int], *, temperature: float = 0.0, seed: int = 0) -> Sequence_:
        row = int(self.rows.pop())
        self.slots[row] = 0 if self.states is None else self.states.slots.take_one()
        return Sequence_(row, list(prompt), len(prompt), temperature=temperature, seed=seed)

    def generate(
        self, prompts: Sequence[Sequence[int]], new_tokens: int, *, whole: bool = False, **sampling: float
    ) -> list[list[int]]:
        """``whole``: no prompt is cut into chunks."""
        running = [self.add(prompt, **sampling) for prompt in prompts]
        while waiting := [s for s in running if len(s.generated) < new_tokens]:
            size = self.rng.integers(1, len(waiting) + 1)
            chosen = [waiting[i] for i in self.rng.permutation(len(waiting))[:size]]
            chunks = [
                len(s.tokens) - s.done if whole else int(self.rng.integers(1, len(s.tokens) - s.done + 1))
                for s in chosen
            ]
            self.step(list(zip(chosen, chunks, strict=True)))
        return [s.generated for s in running]

    def step(self, parts: list[tuple[Sequence_, int]], top_logprobs: int | None = None) -> StepOutput:
        """Run the next tokens of each sequence; those that reach their end get a new token."""
        batch = self.batch(parts, top_logprobs)
        output = self.runner.step(batch)
        finishing = [s for s, chunk in parts if s.done + chunk == len(s.tokens)]
        for s, chunk in parts:
            s.done += chunk
        for s, token in zip(finishing, output.tokens, strict=True):
            s.tokens.append(int(token) if token >= 0 else -1 - int(token))  # from logits that are no numbers
        return output

    def batch(self, parts: list[tuple[Sequence_, int]], top_logprobs: int | None = None) -> ForwardBatch:
        tokens: list[int] = []
        positions: list[int] = []
        slots: list[int] = []
        starts, wanted, finishing = [0], [], []
        for s, chunk in parts:
            for position in range(s.done, s.done + chunk):
                column, offset = divmod(position, self.page_size)
                if self.table.pages[s.row, column] == 1 << 30:
                    self.table.pages[s.row, column] = self.free.pop()
                    self.table.mark_dirty(s.row, column + 1)
                tokens.append(s.tokens[position])
                positions.append(position)
                slots.append(int(self.table.pages[s.row, column]) * self.page_size + offset)
            starts.append(len(tokens))
            if s.done + chunk == len(s.tokens):
                wanted.append(len(tokens) - 1)
                finishing.append(s)
        return ForwardBatch(
            input_ids=np.array(tokens, np.int32),
            positions=np.array(positions, np.int32),
            slot_mapping=np.array(slots, np.int64),
            req_pool_indices=np.array([s.row for s, _ in parts], np.int32),
            query_start_loc=np.array(starts, np.int32),
            seq_lens=np.array([s.done + chunk for s, chunk in parts], np.int32),
            table=self.table,
            page_size=self.page_size,
            logits_indices=np.array(wanted, np.int32),
            sampling=self._sampling(finishing),
            top_logprobs=top_logprobs,
            state_slots=np.array([self.slots[s.row] for s, _ in parts], np.int32),
        )

    @staticmethod
    def _sampling(sequences: list[Sequence_]) -> SamplingArrays | None:
        if all(s.temperature == 0 for s in sequences):
            return None
        count = len(sequences)
        return SamplingArrays(
            temperature=np.array([s.temperature for s in sequences], np.float32),
            top_k=np.zeros(count, np.int32),
            top_p=np.ones(count, np.float32),
            min_p=np.zeros(count, np.float32),
            seed=np.array([s.seed for s in sequences], np.int64),
            position=np.array([len(s.tokens) for s in sequences], np.int64),
        )


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.fixture(scope="session")
def device() -> HostDevice:
    return HostDevice()


@pytest.fixture(scope="session")
def example(tmp_path_factory: pytest.TempPathFactory) -> Example:
    """``example(architecture, seed=1)``: a checkpoint directory that tests must not change."""

    @cache
    def write(architecture: str = "llama", seed: int = 1) -> Path:
        root = tmp_path_factory.mktemp(f"{architecture}-{seed}")
        return write_example_checkpoint(root, seed=seed, architecture=architecture)

    return write


@pytest.fixture
def driver(device: HostDevice) -> Callable[..., Driver]:
    """``driver(runner_or_path, page_size=4, seed=0)``."""

    def make(
        source: TransformersRunner | Path, *, page_size: int = 4, seed: int = 0, neighbours: int = 1
    ) -> Driver:
        runner = TransformersRunner.load(source, device) if isinstance(source, Path) else source
        return Driver(runner, page_size=page_size, seed=seed, neighbours=neighbours)

    return make
