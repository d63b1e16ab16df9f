"""Decoding far into long contexts, what a prompt costs those who run, and what a cached prefix saves.

The model is that of `bench.engine`, on one thread, in CPU time. A pass of ours is timed in turns with one of the
bare model over the same number of tokens: with transformers' growing cache, which copies all keys in every pass,
and with its static one, which does not and is the floor.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from transformers import DynamicCache, StaticCache

from bench.engine import write_model
from bench.harness import Row, Timing, cpu_seconds, rows_beside, timed_row
from devicekit.engine import Engine, EngineConfig
from devicekit.runners.huggingface import AutoModelForCausalLM
from devicekit.scheduling.request import SamplingParams

_CASES = ((8, 1000), (8, 1900), (32, 1000))  # requests, tokens of each
_STEPS = 12
_ROOM = 64  # tokens beyond, for the passes that are timed
_FLOOR = 1 / 1.3  # of ours that a bare pass may be
_RUNNING, _PROMPT = 8, 2000
_SLOWDOWN = 4.0
_CHUNK = 4000  # tokens of prompts that the bare model takes at once
_SAYS = (
    "decode step: one token for each request, greedy, everything but the prompts.\n"
    "growing cache: transformers' default, which copies all keys and values in every pass. static cache: "
    "allocated once, for exactly these lengths; every request has the same length, so nothing is padded."
)
_SAYS_BESIDE = (
    f"a prompt of {_PROMPT:,} tokens beside {_RUNNING} running requests: single passes over the usual one. "
    "Unbounded: `max_slowdown=None`, passes of 512 tokens."
)


def run() -> list[Row]:
    """Decoding at each size, a prompt beside others, and the second request of a prompt."""
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = write_model(Path(folder) / "model")
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        rows = [row for requests, tokens in _CASES for row in _decoding(path, model, requests, tokens)]
        return [*rows, *_beside(path), *_cached(path)]


def _decoding(path: Path, model: Any, requests: int, tokens: int) -> list[Row]:
    prompts = _prompts(requests, tokens)
    engine = _engine(path, requests, tokens)
    for prompt in prompts.tolist():
        engine.submit(prompt, _params(_ROOM))
    _compute_prompts(engine)
    passes = _bare_passes(model, prompts)
    ours: list[float] = []
    others: dict[str, list[float]] = {name: [] for name in passes}
    for turn in range(_STEPS + 2):
        seconds = cpu_seconds(engine.step)
        apart = {name: cpu_seconds(one) for name, one in passes.items()}
        if turn > 1:  # the first are for warming up
            ours.append(seconds)
            for name, one in apart.items():
                others[name].append(one)
    case = f"decode step, {requests} requests of {tokens:,} tokens"
    return rows_beside(case, ours, others, {"static cache": _FLOOR}, _SAYS)


def _bare_passes(model: Any, prompts: torch.Tensor) -> dict[str, Callable[[], object]]:
    """A pass of the bare model with each of its caches, behind these prompts."""
    requests, tokens = prompts.shape
    static = StaticCache(config=model.config, max_cache_len=tokens + _ROOM)
    growing = DynamicCache(config=model.config)
    at_once = max(1, _CHUNK // tokens)
    parts = [DynamicCache(config=model.config) for _ in range(0, requests, at_once)]
    for part, rows in zip(parts, torch.split(prompts, at_once), strict=True):
        model(input_ids=rows, past_key_values=part, use_cache=True, logits_to_keep=1)
    last = prompts[:, -1:].contiguous()
    for number in range(len(static.layers)):
        keys = torch.cat([part.layers[number].keys for part in parts])
        values = torch.cat([part.layers[number].values for part in parts])
        static.update(keys, values, number)
        growing.update(keys, values, number)

    def behind(cache: Any) -> Callable[[], object]:
        return lambda: model(input_ids=last, past_key_values=cache, use_cache=True)

    return {"growing cache": behind(growing), "static cache": behind(static)}


def _beside(path: Path) -> list[Row]:
    """How much longer passes are while a prompt is computed beside running requests."""
    rows: list[Row] = []
    for name, slowdown in (("bounded", _SLOWDOWN), ("unbounded", None)):
        engine = _engine(path, 2 * _RUNNING, _PROMPT, max_slowdown=slowdown)
        for prompt in _prompts(_RUNNING, 32).tolist():
            engine.submit(prompt, _params(_PROMPT))
        for _ in range(12):
            engine.step()
        usual = median(cpu_seconds(engine.step) for _ in range(10))
        [prompt] = _prompts(1, _PROMPT).tolist()
        engine.submit(prompt, _params(1))
        took = _compute_prompts(engine)
        case = f"passes with a prompt, {name}"
        target = _SLOWDOWN if slowdown is not None else None
        rows += [
            Row(
                f"{case}: the usual pass, median", median(took) / usual, "x", target=target, says=_SAYS_BESIDE
            ),
            Row(f"{case}: the usual pass, worst", max(took) / usual, "x", says=_SAYS_BESIDE),
            timed_row(f"{case}: the whole prompt", Timing.of(sum(took) * 1e6), says=_SAYS_BESIDE),
        ]
    return rows


def _cached(path: Path) -> list[Row]:
    """A prompt for the first time, and again."""
    engine = _engine(path, 2, _PROMPT, prefix_caching=True)
    [prompt] = _prompts(1, _PROMPT).tolist()
    first, second = (cpu_seconds(lambda: engine.generate([prompt], _params(1))) for _ in range(2))
    return [
        timed_row(f"first token of {_PROMPT:,}, computed", Timing.of(first * 1e6)),
        timed_row(f"first token of {_PROMPT:,}, cached", Timing.of(second * 1e6)),
    ]


def _compute_prompts(engine: Engine) -> list[float]:
    """CPU seconds of the steps until no prompt is left."""
    state, took = engine.scheduler.state, [cpu_seconds(engine.step)]
    while state.prefilling or state.waiting:
        took.append(cpu_seconds(engine.step))
    return took


def _engine(
    path: Path,
    requests: int,
    tokens: int,
    *,
    max_slowdown: float | None = None,
    prefix_caching: bool = False,
) -> Engine:
    config = EngineConfig(
        max_running=requests,
        kv_tokens=requests * (tokens + 2 * _ROOM),
        prefix_caching=prefix_caching,
        max_slowdown=max_slowdown,
    )
    return Engine.open(path, "cpu", config=config)


def _params(output: int) -> SamplingParams:
    return SamplingParams(max_new_tokens=output, temperature=0, ignore_eos=True)


def _prompts(requests: int, tokens: int) -> torch.Tensor:
    return torch.randint(3, 49_000, (requests, tokens), generator=torch.Generator().manual_seed(requests))
