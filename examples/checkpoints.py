"""Small, real checkpoints of many architectures, made on the spot, for tests and benchmarks."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

from devicekit.devtools.reference import write_model
from devicekit.runners.errors import UnsupportedModel

_ARCHITECTURES: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "llama": {},
        "qwen2": {"tie_word_embeddings": True},
        "qwen3": {"head_dim": 32},
        "mistral": {"sliding_window": 8},
        "gemma2": {
            "head_dim": 32,
            "sliding_window": 8,
            "query_pre_attn_scalar": 1,
            "attn_logit_softcapping": 2.0,
            "final_logit_softcapping": 30.0,
        },
        "gpt2": {"n_inner": 128, "num_key_value_heads": None, "tie_word_embeddings": True},
        "lfm2": {
            "num_hidden_layers": 4,
            "layer_types": ["conv", "full_attention", "conv", "full_attention"],
            "block_auto_adjust_ff_dim": False,
            "tie_word_embeddings": True,
        },
        "qwen3_next": {
            "num_hidden_layers": 4,
            "layer_types": ["linear_attention", "linear_attention", "full_attention", "linear_attention"],
            "head_dim": 16,
            "linear_key_head_dim": 16,
            "linear_value_head_dim": 16,
            "linear_num_key_heads": 2,
            "linear_num_value_heads": 4,
            "moe_intermediate_size": 32,
            "shared_expert_intermediate_size": 32,
            "num_experts": 4,
            "num_experts_per_tok": 2,
        },
        "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
        "deepseek_v3": {
            "num_key_value_heads": 4,
            "q_lora_rank": 16,
            "kv_lora_rank": 16,
            "qk_nope_head_dim": 16,
            "qk_rope_head_dim": 8,
            "v_head_dim": 12,
            "n_routed_experts": 8,
            "num_experts_per_tok": 2,
            "moe_intermediate_size": 32,
            "n_group": 2,
            "topk_group": 1,
            "first_k_dense_replace": 1,
        },
        "gpt_oss": {
            "head_dim": 16,
            "sliding_window": 8,
            "num_local_experts": 4,
            "num_experts_per_tok": 2,
            "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
        },
    }
)
EXAMPLE_ARCHITECTURES: tuple[str, ...] = tuple(_ARCHITECTURES)


def write_example_checkpoint(path: str | Path, *, seed: int, architecture: str = "llama") -> Path:
    """Write config, safetensors and tokenizer of a small random float32 model, and return the directory.

    Different seeds give different weights for the same config. Raises UnsupportedModel for an
    architecture that is not in ``EXAMPLE_ARCHITECTURES``.
    """
    if architecture not in _ARCHITECTURES:
        raise UnsupportedModel(
            f"no example of {architecture!r}; there are {', '.join(EXAMPLE_ARCHITECTURES)}"
        )
    return write_model(path, seed=seed, architecture=architecture, settings=_ARCHITECTURES[architecture])
