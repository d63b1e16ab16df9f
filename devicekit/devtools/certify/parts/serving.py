"""What the parts with an engine share: prompts, an engine that serves them, and tokens to compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from devicekit.device import Device
from devicekit.devtools.reference import Oracle, own_model
from devicekit.engine import Engine, EngineConfig, Generation
from devicekit.runners.loading import quiet

VERSION = "v1"
_TIE = 1e-3  # a lead of the best logit over the second that two ways to add up may turn round


def prompts(count: int, length: int, vocabulary: int) -> list[list[int]]:
    """Different prompts of token ids, of ``length`` tokens and a few more."""
    return [[(7 * n + 3 * at + 1) % vocabulary for at in range(length + n % 5)] for n in range(count)]


def open_engine(
    path: Path, device: Device, dtype: torch.dtype, *, running: int = 8, tokens: int = 4096
) -> Engine:
    """An engine whose KV pool has a fixed size, so that figures compare between devices."""
    config = EngineConfig(max_running=running, kv_tokens=tokens)
    engine = Engine.open(path, device, config=config, dtype=dtype)
    engine.scheduler.state.requests.name_weights(VERSION)
    return engine


def tokens_of(generations: Sequence[Generation]) -> list[list[int]]:
    """The tokens of each."""
    return [list(one.tokens) for one in generations]


def reference(
    path: Path, device: Device, asked: Sequence[list[int]], served: Sequence[Generation], limit: int
) -> list[list[int]]:
    """What transformers alone generates on the same device, one prompt at a time."""
    oracle = Oracle(((VERSION, path),), torch.float32, device.torch_device)
    return [oracle.tokens(prompt, one, limit) for prompt, one in zip(asked, served, strict=True)]


class Ties:
    """Tells a difference that rounding explains from one that it does not."""

    def __init__(self, path: Path) -> None:
        with quiet():
            self._model = own_model(path, torch.float64)

    @torch.no_grad()
    def unexplained(self, prompt: list[int], one: list[int], other: list[int]) -> str:
        """Empty if the two are equal, or first differ where the model hardly prefers one token to the next."""
        if one == other:
            return ""
        shared = zip(one, other, strict=False)
        at = next((at for at, pair in enumerate(shared) if pair[0] != pair[1]), min(len(one), len(other)))
        if at == min(len(one), len(other)):
            return f"{len(one)} tokens and {len(other)}, the shorter beginning the longer"
        logits = self._model(input_ids=torch.tensor([prompt + one[:at]])).logits[0, -1]
        best = logits.topk(2).values
        lead = float(best[0] - best[1])
        return "" if lead < _TIE else f"token {at} is {one[at]} and {other[at]}, with a lead of {lead:.3g}"
