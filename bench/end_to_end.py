"""End to end with a real model: prompts in, tokens out, beside transformers and the bare forward pass.

Everything runs in turns in one process, on one thread, in CPU time: on few cores more threads wait for each other.
The model has the shape of a published one of 135 million parameters, in float32, with random weights, and every
request is greedy and runs to its length. The floor is the model's own forward pass with its own cache, given the
tokens of all requests at once: no engine can do without it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from bench.engine import write_model
from bench.harness import Row, cpu_seconds, rows_beside
from devicekit.engine import Engine, EngineConfig
from devicekit.runners.huggingface import AutoModelForCausalLM
from devicekit.runners.state_layers import cache_argument
from devicekit.scheduling.request import SamplingParams

_CASES = ((8, 32, 16), (8, 256, 16))  # requests, tokens of a prompt, tokens of an output
_ROUNDS = 3
_SAYS = (
    "Time is of all requests together, from their submission to the last token.\n"
    "transformers generate: prompts of one length, so nothing is padded; its own cache, greedy.\n"
    "bare forward: the floor; one pass over all prompts, then one a token, and no choice but the likeliest."
)
_FLOOR = 1 / 1.3  # of ours that the floor may be


def run() -> list[Row]:
    """Each case against the floor, and against `generate`."""
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "model")
        model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32)
        rows: list[Row] = []
        for requests, prompt, output in _CASES:
            rows += _beside(path, model, requests, prompt, output)
        return rows


def _beside(path: Path, model: Any, requests: int, prompt: int, output: int) -> list[Row]:
    tokens = torch.randint(3, 49_000, (requests, prompt), generator=torch.Generator().manual_seed(1))
    engine = _engine(path, requests, prompt, output)
    contenders: dict[str, Callable[[], object]] = {
        "ours": lambda: _ours(engine, tokens.tolist(), output),
        "bare forward": lambda: _floor(model, tokens, output),
        "transformers generate": lambda: model.generate(
            tokens,
            attention_mask=torch.ones_like(tokens),
            max_new_tokens=output,
            min_new_tokens=output,
            do_sample=False,
            pad_token_id=0,
        ),
    }
    found: dict[str, list[float]] = {name: [] for name in contenders}
    with torch.inference_mode():
        for turn in range(_ROUNDS + 1):
            for name, work in contenders.items():
                seconds = cpu_seconds(work)
                if turn:  # the first is for warming up
                    found[name].append(seconds)
    case = f"{requests} requests, {prompt} tokens in, {output} out"
    return rows_beside(case, found.pop("ours"), found, {"bare forward": _FLOOR}, _SAYS)


def _engine(path: Path, requests: int, prompt: int, output: int) -> Engine:
    config = EngineConfig(
        max_running=requests,
        kv_tokens=2 * requests * (prompt + output + 16),
        max_batch_tokens=requests * prompt,
        prefix_caching=False,
    )
    return Engine.open(path, "cpu", config=config)


def _ours(engine: Engine, prompts: list[list[int]], output: int) -> None:
    params = SamplingParams(max_new_tokens=output, temperature=0, ignore_eos=True)
    engine.generate(prompts, params)


def _floor(model: Any, tokens: torch.Tensor, output: int) -> None:
    given, cache, name = tokens, None, cache_argument(model)
    for _ in range(output):
        done = model(input_ids=given, use_cache=True, logits_to_keep=1, **{name: cache})
        given, cache = done.logits[:, -1:].argmax(-1), done[name]
