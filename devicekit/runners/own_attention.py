"""Models that do not ask transformers' registry for attention: it is replaced in their modules.

Their projections and embeddings of positions stay their own; only what reads other tokens is replaced. A model
type that neither stands here nor asks the registry is refused.
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

import torch

from devicekit.runners import huggingface as hf
from devicekit.runners.attention import (
    ATTENTION_NAME,
    SPECIAL,
    AttentionCall,
    KeyBias,
    QueryScale,
    Special,
    attend,
)

_Module = Any  # of transformers: what a class of its modules has is known by the class's name alone


@dataclass(frozen=True, slots=True)
class OwnAttention:
    """How attention is replaced in the modules of one class."""

    module: str  # the class
    replace: Callable[[_Module], None]
    loads_as: str | None = "eager"  # the implementation that such models are built with; None: any
    positions: bool = True  # whether the forward pass needs positions; if not, the bias knows them
    needs_mask: bool = False  # whether it fails without one


def install(model: hf.PreTrainedModel, model_type: str) -> None:
    """Let a model's attention ask the context. Doing it again changes nothing."""
    for module in model.modules():
        _tell_shared_layers_apart(module)
    own = OWN_ATTENTION.get(model_type)
    if own is None:
        return
    model.config._attn_implementation = ATTENTION_NAME  # so that no masks are made
    for module in model.modules():
        if type(module).__name__ == own.module and not hasattr(module, _DONE):
            own.replace(module)
            setattr(module, _DONE, True)


def loads_as(config: hf.PreTrainedConfig) -> str:
    """The attention implementation with which a model must be built, before `install`."""
    own = OWN_ATTENTION.get(config.get_text_config().model_type)
    return ATTENTION_NAME if own is None or own.loads_as is None else own.loads_as


def knows_no_end(model_type: str) -> bool:
    """Whether a model knows positions by a bias alone, which extends as far as there are keys."""
    own = OWN_ATTENTION.get(model_type)
    return own is not None and not own.positions


_DONE = "_devicekit_attends"


def _call(
    module: _Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    scale: float,
    *,
    layer: str = "layer_idx",
    window: int | None = None,
    key_bias: KeyBias | None = None,
) -> torch.Tensor:
    """Attention of ``[1, heads, T, dim]``: ``[1, T, heads, dim]``."""
    return attend(
        AttentionCall(
            layer=int(getattr(module, layer)),
            query=query,
            key=key,
            value=value,
            scale=scale,
            window=window,
            softcap=None,
            sinks=None,
            bias=False,
            causal=True,
            key_bias=key_bias,
        )
    )


# -- Models with a method for what is between projections: query, key and value in, [1, heads, T, dim] out --------


def _replace_attn(scale: Callable[[_Module], float], layer: str = "layer_idx") -> Callable[[_Module], None]:
    def replace(module: _Module) -> None:
        window = (
            int(module.config.window_size) if getattr(module, "attention_type", None) == "local" else None
        )

        def attn(
            query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, *_: object, **__: object
        ) -> tuple[torch.Tensor, None]:
            query, key = query.to(value.dtype), key.to(value.dtype)
            found = _call(module, query, key, value, scale(module), layer=layer, window=window)
            return found.transpose(1, 2), None

        module._attn = attn

    return replace


def _by_width(module: _Module) -> float:
    width: int = module.head_dim
    return float(width**-0.5)


# -- Models with ALiBi --------------------------------------------------------------------------------------------


class _GrowingBias:
    """A bias by position, made by the model's own function, and made anew for each longer sequence."""

    def __init__(self, make: Callable[[int, torch.Tensor], torch.Tensor]) -> None:
        self._make = make
        self._known: torch.Tensor | None = None

    def __call__(self, length: int, like: torch.Tensor) -> torch.Tensor:
        known = self._known
        if (
            known is None
            or known.shape[1] < length
            or (known.dtype, known.device) != (like.dtype, like.device)
        ):
            known = self._known = self._make(max(256, 1 << (length - 1).bit_length()), like).to(like.dtype)
        return known[:, :length]


def _replace_bloom(module: _Module) -> None:
    slopes = vars(sys.modules[type(module).__module__])["_get_alibi_slopes"]

    def make(length: int, like: torch.Tensor) -> torch.Tensor:
        positions = torch.arange(length, device=like.device)
        found: torch.Tensor = slopes(module.num_heads, like.device)[:, None] * positions
        return found

    bias = _GrowingBias(make)

    def forward(
        hidden_states: torch.Tensor, residual: torch.Tensor, *_: object, **__: object
    ) -> tuple[torch.Tensor, None]:
        query, key, value = module._reshape(module.query_key_value(hidden_states))
        found = _call(module, query, key, value, module.inv_norm_factor, key_bias=bias).flatten(2)
        return module.dense(found) + residual, None

    module.forward = forward


def _replace_mpt(module: _Module) -> None:
    build = vars(sys.modules[type(module).__module__])["build_mpt_alibi_tensor"]

    def make(length: int, like: torch.Tensor) -> torch.Tensor:
        # The models' own bias counts back from the last key: the same but for a number that all keys share.
        found: torch.Tensor = build(module.n_heads, length, device=like.device)[:, 0]
        return found - found[:, :1]

    bias = _GrowingBias(make)

    def forward(hidden_states: torch.Tensor, *_: object, **__: object) -> tuple[torch.Tensor, None]:
        mixed = module.Wqkv(hidden_states)
        if module.clip_qkv:
            mixed = mixed.clamp(min=-module.clip_qkv, max=module.clip_qkv)
        heads = (*mixed.shape[:2], module.n_heads, module.head_dim)
        query, key, value = (part.reshape(heads).transpose(1, 2) for part in mixed.chunk(3, dim=2))
        found = _call(module, query, key, value, module.softmax_scale, key_bias=bias).flatten(2)
        return module.out_proj(found), None

    module.forward = forward


def _replace_falcon(module: _Module) -> None:
    own = vars(sys.modules[type(module).__module__])

    def make(length: int, like: torch.Tensor) -> torch.Tensor:
        ones = torch.ones((1, length), dtype=torch.long, device=like.device)
        found: torch.Tensor = own["build_alibi_tensor"](ones, module.num_heads, like.dtype)[:, 0]
        return found * float(module.inv_norm_factor)

    bias = _GrowingBias(make) if module.config.alibi else None

    def forward(
        hidden_states: torch.Tensor,
        *_: object,
        position_embeddings: tuple[torch.Tensor, torch.Tensor] | None = None,
        **__: object,
    ) -> tuple[torch.Tensor, None]:
        query, key, value = (one.transpose(1, 2) for one in _split_falcon(module, hidden_states))
        if bias is None:
            query, key = own["apply_rotary_pos_emb"](query, key, *position_embeddings or ())
        found = _call(module, query, key, value, module.inv_norm_factor, key_bias=bias).flatten(2)
        return module.dense(found), None

    module.forward = forward


def _split_falcon(module: _Module, hidden: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Query, key and value, [1, T, heads, dim]; keys that heads share are not repeated, as the model does."""
    fused = module.query_key_value(hidden)
    if not module.new_decoder_architecture:
        query, key, value = module._split_heads(fused)
        return query, key, value
    shared = module.num_heads // module.num_kv_heads
    parts = fused.view(*fused.shape[:2], module.num_kv_heads, shared + 2, module.head_dim)
    return parts[:, :, :, :-2].flatten(2, 3), parts[:, :, :, -2], parts[:, :, :, -1]


# -- Models that ask the registry, and do not say everything ------------------------------------------------------


def _tell_llama4(module: _Module) -> None:
    kinds = getattr(module.config, "layer_types", None) or ()
    chunked = bool(kinds) and kinds[module.layer_idx] == "chunked_attention"
    scale: QueryScale | None = None
    if module.attn_temperature_tuning and not module.use_rope:
        # It counts the tokens of the pass, which are of many sequences.
        module.attn_temperature_tuning = False

        def scale(positions: torch.Tensor) -> torch.Tensor:
            steps = torch.floor((positions.float() + 1.0) / module.floor_scale)
            found: torch.Tensor = torch.log1p(steps) * module.attn_scale + 1.0
            return found

    setattr(module, SPECIAL, Special(module.config.attention_chunk_size if chunked else None, scale))


def _tell_shared_layers_apart(module: _Module) -> None:
    """Tell a module that several layers share, with each call, which layer it is."""
    if hasattr(module, _DONE) or not hasattr(module, "layer_idx"):
        return
    if "layer_idx" in inspect.signature(type(module).forward).parameters:

        def tell(module: _Module, _: object, named: Mapping[str, object]) -> None:
            module.layer_idx = named.get("layer_idx", module.layer_idx)

        module.register_forward_pre_hook(tell, with_kwargs=True)
        setattr(module, _DONE, True)


OWN_ATTENTION: Mapping[str, OwnAttention] = MappingProxyType(
    {
        "bloom": OwnAttention("BloomAttention", _replace_bloom, positions=False),
        "codegen": OwnAttention("CodeGenAttention", _replace_attn(_by_width)),
        "falcon": OwnAttention("FalconAttention", _replace_falcon),
        "gpt_neo": OwnAttention("GPTNeoSelfAttention", _replace_attn(lambda _: 1.0, layer="layer_id")),
        "gptj": OwnAttention("GPTJAttention", _replace_attn(_by_width)),
        "llama4_text": OwnAttention("Llama4TextAttention", _tell_llama4, loads_as=None),
        "mpt": OwnAttention("MptAttention", _replace_mpt, positions=False, needs_mask=True),
    }
)
"""By model type. What is here is held to the model's own generate by tests (docs/results/architectures.md)."""
