"""From logits to tokens: adjusted, then greedy or drawn. A draw depends on a request's seed and position only."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from devicekit.memory.mirror import upload
from devicekit.scheduling.batch import (
    Float32,
    Int64,
    LogitAdjustments,
    Logprobs,
    Picks,
    SamplingArrays,
    TokenMasks,
)

_COLDEST = 1e-5  # below, the likeliest token has all probability that a float32 can tell, and logits overflow
_BITS = 23  # the largest uniform, 1 - 2**-23, times any float32 total stays below that total


@dataclass(frozen=True, slots=True)
class Measured:
    """`Logprobs` that are on the device still."""

    chosen: torch.Tensor
    top_ids: torch.Tensor  # int32
    top_values: torch.Tensor
    picked: torch.Tensor | None = None

    @property
    def tensors(self) -> tuple[torch.Tensor, ...]:
        """What is to be read back."""
        every = (self.chosen, self.top_ids, self.top_values, self.picked)
        return tuple(tensor for tensor in every if tensor is not None)

    def taken_from(self, arrays: list[npt.NDArray[Any]]) -> Logprobs:
        """The same on the host: takes what was read back of `tensors` off the beginning of ``arrays``."""
        count = len(self.tensors)
        taken = Logprobs(*arrays[:count])
        del arrays[:count]
        return taken


def adjust(logits: torch.Tensor, adjustments: LogitAdjustments) -> torch.Tensor:
    """A copy of ``logits`` ([L, vocabulary]) with single ones scaled and shifted."""
    rows = upload(adjustments.rows, logits.device)
    tokens = upload(adjustments.tokens, logits.device)
    scales, offsets = (_column(one, logits).squeeze(1) for one in (adjustments.scales, adjustments.offsets))
    values = logits[rows, tokens]
    values = torch.where(values > 0, values / scales, values * scales) + offsets
    return logits.index_put((rows, tokens), values)


def mask(logits: torch.Tensor, masks: TokenMasks) -> torch.Tensor:
    """A copy of ``logits`` ([L, vocabulary]) in which the tokens that may not come have no chance."""
    rows = upload(masks.rows, logits.device)
    words = upload(masks.bits, logits.device)
    allowed = (words.unsqueeze(-1) >> torch.arange(32, device=words.device, dtype=words.dtype)) & 1
    allowed = allowed.flatten(1)[:, : logits.shape[1]].bool()
    return logits.index_put((rows,), torch.where(allowed, logits[rows], -torch.inf))


def choose(logits: torch.Tensor, sampling: SamplingArrays | None) -> torch.Tensor:
    """The next token of each row of ``logits`` ([L, vocabulary], float32): [L], int64, on the same device."""
    greedy = logits.argmax(dim=-1)
    if sampling is None:
        return greedy
    temperature = _column(sampling.temperature, logits)
    warm = temperature >= _COLDEST
    probabilities = torch.softmax(logits / torch.where(warm, temperature, 1.0), dim=-1)
    draws = _column(uniforms(sampling.seed, sampling.position), logits)
    tokens = _invert(probabilities, draws).squeeze(1)
    # Whether a row goes through the filters depends on that row alone: so does its draw.
    filtered = np.flatnonzero(
        ((sampling.top_k > 0) & (sampling.top_k < logits.shape[1]))
        | (sampling.top_p < 1)
        | (sampling.min_p > 0)
    )
    if filtered.size:
        rows = upload(filtered, logits.device)
        tokens[rows] = _draw_filtered(probabilities[rows], draws[rows], sampling, filtered)
    return torch.where(warm.squeeze(1), tokens, greedy)


def tempered(logits: torch.Tensor, sampling: SamplingArrays | None) -> torch.Tensor:
    """The logits that tokens are drawn from, before top-k, top-p and min-p. Greedy rows stay as they are."""
    if sampling is None:
        return logits
    temperature = _column(sampling.temperature, logits)
    return logits / torch.where(temperature >= _COLDEST, temperature, 1.0)


def log_probabilities(
    logits: torch.Tensor, tokens: torch.Tensor, top: int, picks: Picks | None = None
) -> Measured:
    """Natural logarithms of the probabilities of ``tokens``, of the ``top`` likeliest, and of those picked.

    NaN where the logits are NaN or infinite. Nothing of the size of ``logits`` is made.
    """
    total = torch.logsumexp(logits, dim=-1, keepdim=True)
    total = torch.where(torch.isfinite(total), total, torch.nan)
    values, ids = logits.topk(min(top, logits.shape[1]), dim=-1)
    picked = None
    if picks is not None:
        rows, columns = (upload(one, logits.device) for one in (picks.rows, picks.tokens))
        picked = logits[rows, columns] - total[rows, 0]
    chosen = (logits.gather(1, tokens.unsqueeze(1)) - total).squeeze(1)
    return Measured(chosen, ids.to(torch.int32), values - total, picked)


def uniforms(seed: Int64, position: Int64) -> Float32:
    """A number in [0, 1) for each pair, the same on every machine: two rounds of a 64-bit mixing function."""
    mixed = _mix(_mix(seed.astype(np.uint64)) ^ position.astype(np.uint64))
    top: Float32 = (mixed >> np.uint64(64 - _BITS)).astype(np.float32)
    top *= np.float32(2.0**-_BITS)
    return top


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    """The finaliser of SplitMix64 (Steele, Lea and Flood, 2014). Unsigned arithmetic wraps, as it should."""
    value = value + np.uint64(0x9E3779B97F4A7C15)
    value = (value ^ (value >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    value = (value ^ (value >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    value ^= value >> np.uint64(31)
    return value


def _draw_filtered(
    probabilities: torch.Tensor, draws: torch.Tensor, sampling: SamplingArrays, rows: npt.NDArray[np.intp]
) -> torch.Tensor:
    """Top-k, then top-p of what is left, then min-p, then the draw; likeliest token first."""
    ranked, ids = probabilities.sort(dim=-1, descending=True, stable=True)
    vocabulary = ranked.shape[1]
    limit = np.where(sampling.top_k[rows] > 0, sampling.top_k[rows], vocabulary).astype(np.int64)
    rank = torch.arange(vocabulary, device=ranked.device)
    ranked = ranked * (rank < _column(limit, rank))
    before = ranked.cumsum(-1) - ranked
    total = ranked.sum(-1, keepdim=True)
    keep = before < _column(sampling.top_p[rows], ranked) * total
    keep &= ranked >= _column(sampling.min_p[rows], ranked) * ranked[:, :1]
    keep[:, 0] = True
    kept = (keep & (ranked > 0)).sum(-1, keepdim=True).clamp_(min=1)  # what is kept comes first
    drawn = _invert(ranked * (rank < kept), draws)
    return ids.gather(1, torch.minimum(drawn, kept - 1)).squeeze(1)


def _invert(weights: torch.Tensor, draws: torch.Tensor) -> torch.Tensor:
    """Index at which the running sum of ``weights`` passes ``draws`` of the total: [L, 1]."""
    running = weights.cumsum(-1)
    passed = (running <= draws * running[:, -1:]).sum(-1, keepdim=True)
    return passed.clamp_(max=weights.shape[1] - 1)


def _column(values: npt.NDArray[np.generic], like: torch.Tensor) -> torch.Tensor:
    return upload(np.ascontiguousarray(values), like.device).to(like.dtype).unsqueeze(1)
