"""The loop: who runs, what is computed, who has ended."""

from __future__ import annotations

from collections import deque

import torch

from .config import EngineConfig
from .model_runner import ModelRunner
from .sequences import Sequence
from .timing import StepTimer


class Engine:
    """Greedy generation for many requests at once."""

    def __init__(self, config: EngineConfig) -> None:
        self.config = config
        self.runner = ModelRunner(config)
        self.timer = StepTimer()
        self._waiting: deque[Sequence] = deque()
        self._running: deque[Sequence] = deque()

    def generate(self, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
        """New tokens of each prompt."""
        if max(map(len, prompts)) + max_new_tokens > self.config.max_length:
            raise ValueError(f"a sequence has at most {self.config.max_length} tokens")
        sequences = [Sequence(list(prompt), max_new_tokens) for prompt in prompts]
        self._waiting.extend(sequences)
        while self._waiting or self._running:
            self.step()
        return [one.output for one in sequences]

    def step(self) -> None:
        """Prompts that have room come first; else everybody who runs gets a token."""
        batch = self._admit() or self._decode()
        try:
            with self.timer.step():
                tokens = self.runner.run(batch)
        except torch.cuda.OutOfMemoryError:
            if len(self._running) == 1:
                raise
            self._preempt(self._running.pop())
            torch.cuda.empty_cache()
            return
        for one, token in zip(batch, tokens, strict=True):
            one.output.append(token)
            if one.finished:
                self._running.remove(one)
                self.runner.blocks.release(one)

    def _admit(self) -> list[Sequence]:
        admitted: list[Sequence] = []
        while self._waiting and len(self._running) < self.config.max_running:
            if not self.runner.blocks.grow(self._waiting[0], len(self._waiting[0].tokens)):
                break
            admitted.append(self._waiting.popleft())
            self._running.append(admitted[-1])
        return admitted

    def _decode(self) -> list[Sequence]:
        ready: list[Sequence] = []
        for one in list(self._running):
            while one in self._running and not self.runner.blocks.grow(one, len(one.tokens)):
                self._preempt(self._running.pop())  # the youngest, which may be this one
            if one in self._running:
                ready.append(one)
        return ready

    def _preempt(self, sequence: Sequence) -> None:
        """Take a sequence's blocks; it starts over when there is room."""
        self.runner.blocks.release(sequence)
        self._waiting.appendleft(sequence)
