"""A model with real attention whose tokens the host can work out again, for engines that run on a device.

One layer reads keys and values from the device's KV pool through torch's fused attention with a mask. The host
computes the same in double precision from the tokens alone, so that a lost key, a stale page, a mask that is off
by one or memory that was never written shows in the tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch.nn import functional

from devicekit.memory.kv import KVLayout, KVPool
from devicekit.scheduling.batch import ForwardBatch, ModelLimits, StepOutput

if TYPE_CHECKING:
    from devicekit.device import Device

VOCABULARY, MAX_POSITIONS = 251, 96
_HEADS, _DIM = 2, 16
_WIDTH = _HEADS * _DIM
_HIDDEN = 3  # keys
# A token is right when the host's own logit for it is this near to the best, in standard deviations of its logits:
# another rounding may choose between two that are as good, a wrong key moves the choice by several.
_NEAR = 0.1


class Weights:
    """The model's numbers, the same for each seed."""

    def __init__(self, seed: int) -> None:
        generator = torch.Generator().manual_seed(seed)

        def drawn(*shape: int) -> torch.Tensor:
            return torch.randn(shape, generator=generator, dtype=torch.float64)

        self.tokens, self.positions = drawn(VOCABULARY, _WIDTH), drawn(MAX_POSITIONS, _WIDTH)
        self.query, self.key, self.value = (drawn(_WIDTH, _WIDTH) * _WIDTH**-0.5 for _ in range(3))
        self.head = drawn(_WIDTH, VOCABULARY)

    def logits(self, tokens: Sequence[int]) -> torch.Tensor:
        """What the host says of the token after these, [vocabulary]."""
        entered = self.tokens[list(tokens)] + self.positions[: len(tokens)]
        query = (entered[-1:] @ self.query).view(1, _HEADS, _DIM).transpose(0, 1)
        key = (entered @ self.key).view(-1, _HEADS, _DIM).transpose(0, 1)
        value = (entered @ self.value).view(-1, _HEADS, _DIM).transpose(0, 1)
        scores = (query @ key.transpose(1, 2)) * _DIM**-0.5
        attended = (scores.softmax(-1) @ value).transpose(0, 1).reshape(_WIDTH)
        logits: torch.Tensor = attended @ self.head
        return logits

    def is_right(self, before: Sequence[int], token: int) -> bool:
        """Whether a device may have chosen ``token`` after ``before``."""
        logits = self.logits(before)
        return bool(logits[token] >= logits.max() - _NEAR * logits.std())


class AttentionModel:
    """A runner over a KV pool of one layer."""

    def __init__(self, device: Device, num_pages: int, page_size: int, weights: Weights) -> None:
        self.limits = ModelLimits(VOCABULARY, MAX_POSITIONS, frozenset())
        self._where = device.torch_device
        self._pool = KVPool(device, KVLayout(1, _HEADS, _DIM, _DIM, torch.float32), num_pages, page_size)
        names = ("tokens", "positions", "query", "key", "value", "head")
        self._weights = {name: getattr(weights, name).float().to(self._where) for name in names}

    def step(self, batch: ForwardBatch) -> StepOutput:
        weights = self._weights
        tokens, positions = self._upload(batch.input_ids), self._upload(batch.positions)
        entered = weights["tokens"].index_select(0, tokens) + weights["positions"].index_select(0, positions)
        query, key, value = (
            (entered @ weights[name]).view(-1, _HEADS, _DIM) for name in ("query", "key", "value")
        )
        self._pool.write(0, self._upload(batch.slot_mapping), key, value)
        rows = [self._attended(batch, query, int(index)) for index in batch.logits_indices]
        if not rows:
            return StepOutput(np.zeros(0, np.int32))
        chosen = (torch.cat(rows) @ weights["head"]).argmax(dim=-1)
        return StepOutput(chosen.cpu().numpy().astype(np.int32))

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        yield from self._weights.items()

    def _attended(self, batch: ForwardBatch, query: torch.Tensor, index: int) -> torch.Tensor:
        """The row of one wanted token: its sequence's queries over its keys, under a mask."""
        sequence = int(np.searchsorted(batch.query_start_loc, index, side="right")) - 1
        first = int(batch.query_start_loc[sequence])
        places = np.arange(int(batch.positions[index]) + 1)
        pages = batch.page_table[int(batch.req_pool_indices[sequence])][places // batch.page_size]
        slots = pages.astype(np.int64) * batch.page_size + places % batch.page_size
        # Behind its own keys stand some that the mask has to hide, as where sequences are read together.
        key, value = self._pool.read(0, self._upload(np.concatenate([slots, np.repeat(slots[-1:], _HIDDEN)])))
        mine = self._upload(np.arange(first, index + 1))
        seen = self._upload(batch.positions[first : index + 1]).unsqueeze(1)
        mask = self._upload(np.arange(len(places) + _HIDDEN)).unsqueeze(0) <= seen
        q, k, v = (one.transpose(0, 1).unsqueeze(0) for one in (query.index_select(0, mine), key, value))
        result = functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return result[0, :, -1].reshape(1, _WIDTH)

    def _upload(self, array: np.ndarray[tuple[int], np.dtype[np.generic]]) -> torch.Tensor:
        return torch.from_numpy(np.ascontiguousarray(array.astype(np.int64))).to(self._where)


def token_faults(device: Device) -> Iterator[str]:
    """What went wrong when the scheduler served requests of several lengths with this model on ``device``."""
    from devicekit.scheduling.request import Request, SamplingParams
    from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits

    weights, pages, page_size = Weights(11), 24, 4
    runner = AttentionModel(device, pages, page_size, weights)
    limits = SchedulerLimits(pages, page_size, max_running=4, max_batch_tokens=16, checked=True)
    scheduler = Scheduler(runner, device, limits)
    prompts = {
        f"r{n}": [(29 * n + 7 * k) % VOCABULARY for k in range(size)]
        for n, size in enumerate((1, 4, 17, 30, 2))
    }
    params = SamplingParams(max_new_tokens=8, temperature=0.0)
    for name, prompt in prompts.items():
        scheduler.post(Request(name, np.asarray(prompt, np.int32), params))
    tokens: dict[str, list[int]] = {name: [] for name in prompts}
    left = set(prompts)
    for _ in range(400):
        for output in scheduler.step().outputs:
            tokens[output.id].extend(output.tokens)
            if output.finish is not None:
                left.discard(output.id)
                if output.finish.kind.value == "error":
                    yield f"request {output.id} failed: {output.finish.message}"
        if not left:
            break
    if left:
        yield f"{len(left)} requests never ended"
    for name, prompt in prompts.items():
        for place, token in enumerate(tokens[name]):
            before = prompt + tokens[name][:place]
            if not weights.is_right(before, token):
                best = int(weights.logits(before).argmax())
                yield f"after {len(before)} tokens it chose {token}, and the host's model says {best}"
                break
