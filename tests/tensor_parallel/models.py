"""Small checkpoints whose plans differ: what is tied, windowed, shared between heads, and given to experts."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

# architecture, and what its config says beside the usual: 4 heads of 16, 2 of them for keys, 64 wide, 2 layers.
MODELS: Mapping[str, tuple[str, Mapping[str, object]]] = MappingProxyType(
    {
        "llama": ("llama", {}),
        "biased": ("llama", {"attention_bias": True, "mlp_bias": True}),
        "one key head": ("llama", {"num_key_value_heads": 1}),
        "three key heads": ("qwen3", {"num_attention_heads": 6, "num_key_value_heads": 3, "head_dim": 16}),
        "tied": ("qwen2", {"tie_word_embeddings": True}),
        "qwen2": ("qwen2", {}),
        "qwen3": ("qwen3", {"head_dim": 32}),
        "gemma3": (
            "gemma3_text",
            {"head_dim": 32, "sliding_window": 8, "layer_types": ["sliding_attention", "full_attention"]},
        ),
        "mixtral": ("mixtral", {"num_local_experts": 4, "num_experts_per_tok": 2}),
        "qwen3_moe": (
            "qwen3_moe",
            {"head_dim": 16, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32},
        ),
        "phi3": ("phi3", {"pad_token_id": 0}),
        "gpt_oss": (
            "gpt_oss",
            {
                "head_dim": 16,
                "sliding_window": 8,
                "num_local_experts": 4,
                "num_experts_per_tok": 2,
                "rope_parameters": {"rope_type": "default", "rope_theta": 10000.0},
            },
        ),
    }
)
PARTLY = ("phi3", "gpt_oss")
"""Those whose plans leave attention whole."""
