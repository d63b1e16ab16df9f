"""Paged attention: what transformers models call in place of their own, reading keys from the KV pool."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.nn import functional

from devicekit.memory.kv import KVPool
from devicekit.runners import huggingface as hf
from devicekit.runners.plan import Segments
from devicekit.runners.reach import Reach

ATTENTION_NAME = "devicekit_paged"
# Not keyword arguments of the forward pass: some models do not hand those on to their attention.
_context: ContextVar[AttentionContext] = ContextVar("devicekit_attention")


@dataclass(frozen=True, slots=True)
class AttentionCall:
    """What one layer asks for. Tensors are ``[1, heads, T, dim]``, the packed tokens of the batch."""

    layer: int
    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    scale: float
    window: int | None  # keys visible to a query, itself included
    softcap: float | None
    sinks: torch.Tensor | None  # [heads], a logit per head that takes weight and gives nothing
    bias: bool  # the model adds a bias to the scores that is not known here
    causal: bool
    chunked: bool = False  # the window does not slide: a token sees its own multiple of it
    key_bias: KeyBias | None = None  # what is added to the scores, by head and position of the key
    query_scale: QueryScale | None = None  # what queries are multiplied by, by their position


class KeyBias(Protocol):
    """A bias of attention scores that depends on the key's position alone, as that of ALiBi."""

    def __call__(self, length: int, like: torch.Tensor) -> torch.Tensor:
        """The bias of the first ``length`` positions, [heads, length], with dtype and device of ``like``."""
        ...


QueryScale = Callable[[torch.Tensor], torch.Tensor]
"""Factors of queries by their positions: [T] int64 in, [T] out."""


class AttentionContext(Protocol):
    """What attention layers use during a forward pass."""

    def attend(self, call: AttentionCall) -> torch.Tensor:
        """The result of attention: ``[1, T, heads, value_dim]``."""
        ...


class ReadPlan(Protocol):
    """Which keys each token of a batch reads; `AttentionPlan` says what the methods give."""

    def segments(
        self, window: int | None, *, chunked: bool = False, in_order: bool = False
    ) -> list[Segments]: ...

    def reaches(
        self, window: int | None, *, chunked: bool = False, in_order: bool = False
    ) -> list[Reach]: ...


class PagedAttention:
    """The context of one step: stores each layer's keys and values, and reads them by the plan."""

    def __init__(
        self,
        pool: KVPool,
        plan: ReadPlan,
        slots: torch.Tensor,
        layers: Mapping[int, int],
        positions: torch.Tensor,
        window_slots: torch.Tensor | None = None,
    ) -> None:
        self._pool = pool
        self._positions = positions  # [T] of the batch's tokens in their sequences
        self._plan = plan
        self._layers = layers  # the pool's number of each of the model's layers that attends
        self._slots = slots  # [T] where the batch's own keys and values go
        # The same for layers with a window.
        self._window_slots = slots if window_slots is None else window_slots

    def attend(self, call: AttentionCall) -> torch.Tensor:
        query = call.query[0].transpose(0, 1)  # [T, heads, dim]
        layer = self._layers[call.layer]
        slots = self._slots if call.window is None else self._window_slots
        self._pool.write(layer, slots, call.key[0].transpose(0, 1), call.value[0].transpose(0, 1))
        if call.query_scale is not None:
            query = (query * call.query_scale(self._positions)[:, None, None]).to(query.dtype)
        output = query.new_empty(query.shape[0], query.shape[1], call.value.shape[-1])
        in_order = call.key_bias is not None
        for segments in self._plan.segments(call.window, chunked=call.chunked, in_order=in_order):
            key, value = self._pool.read(layer, segments.key_slots)
            attended = _attend(
                query[segments.tokens], key.to(query.dtype), value.to(query.dtype), segments, call
            )
            # Padded queries repeat the segment's last token, so they write what it writes.
            output.index_copy_(0, segments.tokens.reshape(-1), attended.flatten(0, 1))
        if reaches := self._plan.reaches(call.window, chunked=call.chunked, in_order=in_order):
            keys, values = self._pool.key(layer), self._pool.value(layer)
            for reach in reaches:
                output[reach.token] = _attend_in_place(query[reach.token], keys, values, reach, call)
        return output.unsqueeze(0)


@dataclass(frozen=True, slots=True)
class Special:
    """What a module's call does not say about its attention; `own_attention` sets it at the module."""

    window: int | None = None  # of chunks
    query_scale: QueryScale | None = None


SPECIAL = "_devicekit_special"
_NOTHING_SPECIAL = Special()


def attend(call: AttentionCall) -> torch.Tensor:
    """Attention of the pass that is being run: ``[1, T, heads, value_dim]``."""
    return _context.get().attend(call)


@contextmanager
def attending(context: AttentionContext) -> Iterator[None]:
    """A block in which forward passes on this thread take their attention from ``context``."""
    token = _context.set(context)
    try:
        yield
    finally:
        _context.reset(token)


def _attend(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, segments: Segments, call: AttentionCall
) -> torch.Tensor:
    """``query`` [G, Q, heads, dim] over ``key`` and ``value`` [G, L, kv_heads, dim] gives [G, Q, heads, dim]."""
    groups, queries, heads, _ = query.shape
    kv_heads = key.shape[2]
    shared = heads // kv_heads
    # Query heads that share a key head become extra query rows: keys and values are never repeated.
    packed = query.view(groups, queries, kv_heads, shared, -1).permute(0, 2, 3, 1, 4).flatten(2, 3)
    key, value = key.transpose(1, 2), value.transpose(1, 2)
    mask = segments.mask(shared)
    if call.key_bias is not None:
        mask = _biased(mask, call.key_bias(key.shape[2], packed), kv_heads, packed.shape[2])
    if call.softcap is None and call.sinks is None:
        result = functional.scaled_dot_product_attention(packed, key, value, attn_mask=mask, scale=call.scale)
    else:
        result = _attend_by_hand(packed, key, value, mask, call)
    per_head = result.reshape(groups, kv_heads, shared, queries, -1)
    return per_head.permute(0, 3, 1, 2, 4).flatten(2, 3)


def _biased(mask: torch.Tensor, bias: torch.Tensor, kv_heads: int, rows: int) -> torch.Tensor:
    """A mask that adds ``bias`` ([heads, L]) where it lets see: [G, kv_heads, rows, L].

    Segments of layers without a window begin at the first key, so that bias and keys are in one order.
    """
    by_row = bias.view(kv_heads, -1, 1, bias.shape[-1])
    by_row = by_row.expand(-1, -1, rows // by_row.shape[1], -1).reshape(1, kv_heads, rows, -1)
    return by_row.masked_fill(~mask, float("-inf"))


def _attend_in_place(
    query: torch.Tensor, keys: torch.Tensor, values: torch.Tensor, reach: Reach, call: AttentionCall
) -> torch.Tensor:
    """``query`` [heads, dim] over a token's reach in the pool's ``keys`` and ``values``: [heads, value_dim]."""
    kv_heads = keys.shape[1]
    packed = query.view(kv_heads, query.shape[0] // kv_heads, -1)
    read_keys, read_values = _read(keys, reach), _read(values, reach)
    if len(read_keys) == 1 and call.softcap is None and call.sinks is None:
        result = functional.scaled_dot_product_attention(
            packed[None], read_keys[0][None], read_values[0][None], scale=call.scale
        )
        return result[0].flatten(0, 1)
    scores = torch.cat([torch.bmm(packed, key.transpose(1, 2)) for key in read_keys], dim=-1) * call.scale
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    if call.sinks is not None:
        scores = torch.cat([scores, call.sinks.view(kv_heads, -1, 1).to(scores.dtype)], dim=-1)
    weights = functional.softmax(scores, dim=-1, dtype=torch.float32).to(values.dtype)
    shares = torch.split(
        weights[..., : sum(key.shape[1] for key in read_keys)], [key.shape[1] for key in read_keys], -1
    )
    output = torch.bmm(shares[0], read_values[0])
    for share, value in zip(shares[1:], read_values[1:], strict=True):
        output.baddbmm_(share, value)
    return output.flatten(0, 1)


def _read(buffer: torch.Tensor, reach: Reach) -> list[torch.Tensor]:
    """A token's keys or values, [kv_heads, n, dim] each: views but for what is scattered."""
    parts = [buffer[run].transpose(0, 1) for run in reach.runs]
    if reach.scattered is not None:
        parts.append(buffer.index_select(0, reach.scattered).transpose(0, 1))
    return parts


def _attend_by_hand(
    query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, mask: torch.Tensor, call: AttentionCall
) -> torch.Tensor:
    """The same for models that change scores in a way for which the fused kernel has no argument."""
    scores = torch.matmul(query, key.transpose(-1, -2)) * call.scale
    if call.softcap is not None:
        scores = torch.tanh(scores / call.softcap) * call.softcap
    scores = scores.masked_fill(~mask, float("-inf"))
    if call.sinks is None:
        weights = functional.softmax(scores, dim=-1, dtype=torch.float32)
    else:
        rows_per_head = query.shape[2] * query.shape[1] // call.sinks.numel()
        sinks = call.sinks.view(1, query.shape[1], -1).repeat_interleave(rows_per_head, dim=2)
        sinks = sinks.unsqueeze(-1).expand(query.shape[0], -1, -1, -1).to(scores.dtype)
        weights = functional.softmax(torch.cat([scores, sinks], dim=-1), dim=-1, dtype=torch.float32)[
            ..., :-1
        ]
    return torch.matmul(weights.to(value.dtype), value)


def _from_transformers(
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    is_causal: bool | None = None,
    **others: object,
) -> tuple[torch.Tensor, None]:
    special = getattr(module, SPECIAL, _NOTHING_SPECIAL)
    call = AttentionCall(
        layer=int(module.layer_idx),  # type: ignore[arg-type]  # every decoder layer has one; modules are untyped
        query=query,
        key=key,
        value=value,
        scale=query.shape[-1] ** -0.5 if scaling is None else scaling,
        window=sliding_window if special.window is None else special.window,
        softcap=softcap,
        sinks=s_aux,
        bias=attention_mask is not None or others.get("position_bias") is not None,
        causal=bool(getattr(module, "is_causal", True) if is_causal is None else is_causal),
        chunked=special.window is not None,
        query_scale=special.query_scale,
    )
    return attend(call), None


def register() -> None:
    """Make the attention known to transformers under ``ATTENTION_NAME``; doing it again changes nothing.

    It is left out of transformers' mask registry on purpose: an attention without an entry there gets no
    mask at all, while a registered mask function is only called after a search for packed sequences that
    makes the device wait in every step.
    """
    hf.AttentionInterface.register(ATTENTION_NAME, _from_transformers)
