"""nano-vllm: its scheduler and block manager, stepped as its `LLMEngine.step` does, with tokens made up.

It is on no package index: install it from its repository, or point NANO_VLLM at a checkout.
"""

from __future__ import annotations

import importlib.util
import itertools
import os
import random
import sys
from collections.abc import Callable
from importlib.metadata import PackageNotFoundError, version
from time import process_time
from types import ModuleType, SimpleNamespace
from typing import Any

from bench.harness import cpu_seconds
from bench.peers.peer import Peer

NAME = "nano-vllm"
STUBBED = "the package's own __init__, which imports GPU kernels; the model"
_BLOCK = 16  # tokens; it is 256 or more unless the class is told otherwise
_VOCABULARY, _END, _TOKEN = 32_000, 2, 7
_PROMPT, _OUTPUT, _STAY = 64, 6000, 128
_STEPS = 20  # timed together


def load() -> Peer:
    """The peer. Raises ImportError if it is not here."""
    root = os.environ.get("NANO_VLLM")
    if root is None:
        spec = importlib.util.find_spec("nanovllm")
        if spec is None or spec.submodule_search_locations is None:
            raise ImportError("nanovllm is not installed, and NANO_VLLM names no checkout")
        folder = next(iter(spec.submodule_search_locations))
    else:
        folder = os.path.join(root, "nanovllm")
    package = sys.modules.setdefault("nanovllm", ModuleType("nanovllm"))
    package.__path__ = [folder]
    importlib.import_module("nanovllm.engine.scheduler")
    importlib.import_module("nanovllm.engine.sequence").Sequence.block_size = _BLOCK
    try:
        number = version("nano-vllm")
    except PackageNotFoundError:
        number = "from a checkout"
    cases = {"decode step": _decode, "churn step": _churn, "decode allocation": _allocation, "pages": _pages}
    return Peer(NAME, number, STUBBED, cases)


def _scheduler(running: int, blocks: int) -> Any:
    from nanovllm.engine.scheduler import Scheduler  # type: ignore[import-not-found]

    return Scheduler(
        SimpleNamespace(
            max_num_seqs=running + 64,
            max_num_batched_tokens=8192 + running,
            eos=_END,
            kvcache_block_size=_BLOCK,
            num_kvcache_blocks=blocks,
        )
    )


def _sequence(tokens: list[int], output: int) -> Any:
    from nanovllm.engine.sequence import Sequence  # type: ignore[import-not-found]
    from nanovllm.sampling_params import SamplingParams  # type: ignore[import-not-found]

    return Sequence(tokens, SamplingParams(max_tokens=output))


def _step(scheduler: Any) -> object:
    sequences, prefill = scheduler.schedule()
    scheduler.postprocess(sequences, [_TOKEN] * len(sequences), prefill)
    return [(one.seq_id, one.completion_token_ids) for one in sequences if one.is_finished]


def _steady(running: int) -> Any:
    scheduler, rng = _scheduler(running, running * 512), random.Random(1)
    for number in range(running):
        prompt = rng.choices(range(3, _VOCABULARY), k=_PROMPT - number % 16)
        scheduler.add(_sequence(prompt, _OUTPUT))
    while scheduler.waiting:
        _step(scheduler)
    return scheduler


def _decode(running: int) -> Callable[[], float]:
    scheduler = _steady(running)
    return lambda: cpu_seconds(lambda: _step(scheduler), _STEPS)


def _allocation(running: int) -> Callable[[], float]:
    """What its decode loop asks of the block manager, for sequences that grow by a token each time."""
    scheduler = _steady(running)
    manager, sequences = scheduler.block_manager, [*scheduler.running]

    def once() -> None:
        for one in sequences:
            if manager.can_append(one):
                manager.may_append(one)

    def steps() -> float:
        spent = 0.0
        for _ in range(_STEPS):
            for one in sequences:
                one.num_tokens += 1
            spent += cpu_seconds(once)
        return spent / _STEPS

    return steps


def _churn(running: int) -> Callable[[], float]:
    scheduler, rng = _scheduler(running, running * 64), random.Random(1)
    shared, rate, owed, numbers = list(range(3, 3 + _PROMPT // 2)), running / _STAY, 0.0, itertools.count()

    def steps() -> float:
        nonlocal owed
        due: list[list[list[int]]] = []
        for _ in range(_STEPS):
            owed += rate
            due.append([shared + rng.choices(range(3, _VOCABULARY), k=32) for _ in range(int(owed))])
            owed -= int(owed)
        started = process_time()
        for prompts in due:
            for tokens in prompts:
                next(numbers)
                scheduler.add(_sequence(tokens, _STAY))
            if scheduler.waiting:  # its passes are prompts or tokens, and ours are both at once
                _step(scheduler)
            if scheduler.running:
                _step(scheduler)
        return (process_time() - started) / _STEPS

    for _ in range(_STAY * 2 // _STEPS):
        steps()
    return steps


def _pages(count: int) -> Callable[[], float]:
    """``count`` blocks in and out, of 100,000."""
    from nanovllm.engine.block_manager import BlockManager  # type: ignore[import-not-found]

    manager = BlockManager(100_000, _BLOCK)
    one = _sequence([5] * (_BLOCK * count), 1)

    def once() -> None:
        manager.allocate(one, 0)
        manager.deallocate(one)

    return lambda: cpu_seconds(once, max(1, 400 // count))
