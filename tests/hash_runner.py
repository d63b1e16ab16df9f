"""A runner whose next token depends on every token before it, read back from a real KV pool.

It is a model in the only way that matters to a scheduler: a wrong slot, a lost token, a page that two requests
share by mistake, or keys made by other weights change what comes out. `expected` says what should have come out.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from hashlib import blake2b

import numpy as np
import numpy.typing as npt
import torch

from devicekit.device import Device
from devicekit.memory.kv import KVLayout, KVPool
from devicekit.scheduling.batch import (
    Float32,
    ForwardBatch,
    Int32,
    Int64,
    LogitAdjustments,
    Logprobs,
    ModelLimits,
    StepOutput,
)

LAYOUT = KVLayout(num_layers=2, num_kv_heads=1, key_dim=1, value_dim=1, dtype=torch.int64)

_U64 = npt.NDArray[np.uint64]
_PARTS: _U64 = np.arange(2 * LAYOUT.num_layers, dtype=np.uint64)[:, None]  # a key and a value of each layer
_SHAPES = {
    "embed.weight": ((8, 4), torch.float32),
    "layers.0.bias": ((6,), torch.float32),
    "head.weight": ((4, 4), torch.bfloat16),
}


class HashRunner:
    """Holds a KV pool and a few small weights on a device. ``weights`` may be changed in place at any time.

    With a ``window`` a token sees only so many, itself included, and pages that none sees may be gone; with a
    ``partial_window`` it does so in the last layer alone, which may have pages of its own.
    Exceptions in ``faults`` are raised by the coming steps, one each; ``None`` lets a step pass. With
    ``faults_after_writing`` they come after the keys and values were written.
    """

    def __init__(
        self,
        device: Device,
        *,
        num_pages: int,
        page_size: int,
        vocab_size: int = 997,
        max_positions: int = 4096,
        eos_token_ids: frozenset[int] = frozenset(),
        window: int | None = None,
        partial_window: int | None = None,
        seed: int = 0,
    ) -> None:
        self.device = device
        self.pool = KVPool(device, LAYOUT, num_pages, page_size)
        self.weights = {
            name: torch.nn.Parameter(tensor.to(device.torch_device), requires_grad=False)
            for name, tensor in make_weights(seed).items()
        }
        self.faults: deque[BaseException | None] = deque()
        self.faults_after_writing = False
        self.steps = 0
        self._limits = ModelLimits(vocab_size, max_positions, eos_token_ids, window, partial_window)

    @property
    def limits(self) -> ModelLimits:
        return self._limits

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Every weight by name."""
        yield from self.weights.items()

    def salt(self) -> int:
        """The number that stands for the weights as they are now."""
        return salt_of(self.weights)

    def step(self, batch: ForwardBatch) -> StepOutput:
        """Write an entry per token into the pool and hash the histories of the wanted ones."""
        self.steps += 1
        fault = self.faults.popleft() if self.faults else None
        if fault is not None and not self.faults_after_writing:
            raise fault
        salt = self.salt()
        self._write(batch, salt)
        if fault is not None:
            raise fault
        sums = self._histories(batch)
        chosen = _choose(sums, salt, batch, self._limits.vocab_size)
        return StepOutput(
            chosen,
            _logprobs(sums, chosen, batch, self._limits.vocab_size),
            _prompt_logprobs(batch, salt, self._limits.vocab_size),
        )

    def _write(self, batch: ForwardBatch, salt: int) -> None:
        parts = _mix(_entries(batch.input_ids, batch.positions, salt) + _PARTS)
        cells = torch.from_numpy(parts.view(np.int64)).to(self.device.torch_device).view(len(parts), -1, 1, 1)
        for layer in range(LAYOUT.num_layers):
            slots = self._slots(layer, batch, batch.slot_mapping)
            self.pool.write(layer, slots, cells[2 * layer], cells[2 * layer + 1])

    def _histories(self, batch: ForwardBatch) -> _U64:
        """For each wanted token the sum over all that it sees: what its sequence has in the pool up to it."""
        sums: _U64 = np.zeros(len(batch.logits_indices), np.uint64)
        if not len(sums):
            return sums
        limits = self._limits
        seen, begins = _visible(batch, limits.window)
        for layer in range(LAYOUT.num_layers):
            if layer == LAYOUT.num_layers - 1 and limits.partial_window is not None:
                seen, begins = _visible(batch, limits.partial_window)
            for tensor in self.pool.read(layer, self._slots(layer, batch, seen)):
                sums += np.add.reduceat(tensor.reshape(-1).cpu().numpy().view(np.uint64), begins)
        return sums

    def _slots(self, layer: int, batch: ForwardBatch, slots: Int64) -> torch.Tensor:
        """Where a layer has these slots, on the device."""
        if batch.window_pages is not None and layer == LAYOUT.num_layers - 1:
            pages, offsets = np.divmod(slots, batch.page_size)
            slots = batch.window_pages[pages].astype(np.int64) * batch.page_size + offsets
        return torch.from_numpy(slots.astype(np.int64)).to(self.device.torch_device)


def _visible(batch: ForwardBatch, window: int | None) -> tuple[Int64, Int64]:
    """The slots that the wanted tokens see, one token's after the other's, and where each one's begin."""
    wanted = batch.logits_indices.astype(np.int64)
    owner = np.searchsorted(batch.query_start_loc, wanted, side="right") - 1
    behind = batch.positions[wanted].astype(np.int64) + 1
    lengths = behind if window is None else np.minimum(behind, window)
    ends = np.cumsum(lengths)
    positions = np.arange(int(ends[-1])) + np.repeat(behind - ends, lengths)
    rows = np.repeat(batch.req_pool_indices[owner].astype(np.int64), lengths)
    pages = batch.page_table[rows, positions // batch.page_size].astype(np.int64)
    return pages * batch.page_size + positions % batch.page_size, ends - lengths


def make_weights(seed: int) -> dict[str, torch.Tensor]:
    """Host tensors with the names, shapes and dtypes of a `HashRunner`'s weights."""
    generator = torch.Generator().manual_seed(seed)
    return {
        name: torch.randn(shape, generator=generator).to(dtype) for name, (shape, dtype) in _SHAPES.items()
    }


def salt_of(weights: dict[str, torch.Tensor] | dict[str, torch.nn.Parameter]) -> int:
    """The number that stands for these weights in every hash."""
    digest = blake2b(digest_size=8)
    for name in sorted(weights):
        digest.update(weights[name].detach().contiguous().cpu().view(torch.uint8).numpy().tobytes())
    return int.from_bytes(digest.digest(), "little")


def expected(
    prompt: Sequence[int],
    count: int,
    salt: int,
    *,
    vocab_size: int = 997,
    kept: int = 0,
    kept_salt: int = 0,
    known: Sequence[int] = (),
) -> list[int]:
    """Greedy output for a prompt: ``known`` tokens first, then hashed ones, ``count`` in all.

    Args:
        kept: leading tokens whose entries were made by weights of ``kept_salt`` and are still in the pool.
    """
    tokens = [*prompt, *known]
    while len(tokens) < len(prompt) + count:
        ids, positions = np.array(tokens, np.int32), np.arange(len(tokens), dtype=np.int32)
        entries = _entries(ids, positions, salt)
        entries[:kept] = _entries(ids[:kept], positions[:kept], kept_salt)
        cells = _mix(entries + _PARTS).sum(axis=0, dtype=np.uint64)
        digest = _mix(np.array([cells.sum(dtype=np.uint64)]) ^ np.uint64(salt))
        tokens.append(int(digest[0] % np.uint64(vocab_size)))
    return tokens[len(prompt) :]


def _choose(sums: _U64, salt: int, batch: ForwardBatch, vocabulary: int) -> Int32:
    digest = _mix(sums ^ np.uint64(salt))
    if batch.sampling is not None:
        draws = _mix(digest ^ _mix(_unsigned(batch.sampling.seed) + _unsigned(batch.sampling.position)))
        digest = np.where(batch.sampling.temperature > 0, draws, digest)
    if batch.adjustments is not None:
        digest = digest + _wishes(batch.adjustments, len(digest))
    chosen: Int32 = (digest % np.uint64(vocabulary)).astype(np.int32)
    if batch.adjustments is not None:
        _step_over(chosen, batch.adjustments, vocabulary)
    return chosen


def _wishes(given: LogitAdjustments, count: int) -> _U64:
    """A number for what each position wants done to its logits; 0 for nothing, and for what is neutral."""
    bits = _mix(_unsigned(given.tokens))
    bits ^= _mix(given.scales.view(np.uint32).astype(np.uint64))
    bits ^= _mix(given.offsets.view(np.uint32).astype(np.uint64) << np.uint64(32))
    wanted = np.isfinite(given.offsets) & ((given.scales != 1) | (given.offsets != 0))
    sums = np.zeros(count, np.uint64)
    np.add.at(sums, given.rows[wanted], bits[wanted])
    return sums


def _step_over(chosen: Int32, given: LogitAdjustments, vocabulary: int) -> None:
    """Take the next token that is not ruled out."""
    out = np.isneginf(given.offsets)
    ruled_out = set(zip(given.rows[out].tolist(), given.tokens[out].tolist(), strict=True))
    for at in range(len(chosen)):
        while (at, int(chosen[at])) in ruled_out:
            chosen[at] = (chosen[at] + 1) % vocabulary


def _logprobs(sums: _U64, chosen: Int32, batch: ForwardBatch, vocabulary: int) -> Logprobs | None:
    """Made up, but the same for the same history: minus a fraction of the hash."""
    if batch.top_logprobs is None:
        return None
    values: Float32 = -(_mix(sums) % np.uint64(1000)).astype(np.float32) / np.float32(1000)
    ids = (chosen[:, None] + np.arange(batch.top_logprobs, dtype=np.int32)) % vocabulary
    top = np.repeat(values[:, None], batch.top_logprobs, axis=1)
    picks = None if batch.logprobs is None else batch.logprobs.picks
    picked = None if picks is None else values[picks.rows]
    return Logprobs(values, ids.astype(np.int32), top, picked)


def _prompt_logprobs(batch: ForwardBatch, salt: int, vocabulary: int) -> Logprobs | None:
    """Made up of each token and its position alone."""
    scored = batch.scored
    if scored is None:
        return None
    hashed = _entries(batch.input_ids[scored.at], batch.positions[scored.at], salt)
    values: Float32 = -(_mix(hashed) % np.uint64(1000)).astype(np.float32) / np.float32(1000)
    ids = (scored.targets[:, None] + np.arange(scored.top, dtype=np.int32)) % vocabulary
    top = np.repeat(values[:, None], scored.top, axis=1)
    picked = None if scored.picks is None else values[scored.picks.rows]
    return Logprobs(values, ids.astype(np.int32), top, picked)


def _entries(tokens: Int32, positions: Int32, salt: int) -> _U64:
    pair = (_unsigned(tokens) << np.uint64(32)) | _unsigned(positions)
    return _mix(pair ^ np.uint64(salt))


def _unsigned(values: Int32 | Int64) -> _U64:
    wide: Int64 = values.astype(np.int64)
    bits: _U64 = wide.view(np.uint64)
    return bits


def _mix(value: _U64) -> _U64:
    """A bijection of 64-bit numbers that scatters neighbours; unsigned arithmetic wraps, as it should."""
    for _ in range(2):
        value = (value ^ (value >> np.uint64(32))) * np.uint64(0xD6E8FEB86659FD93)
    mixed: _U64 = value ^ (value >> np.uint64(32))
    return mixed
