"""What sizes are called in the configs of transformers, and what each is in a tiny model."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType

VOCABULARY = 384
LAYERS = ("num_hidden_layers", "n_layer", "n_layers", "num_layers", "decoder_layers", "encoder_layers")


def _named(value: int, names: str) -> dict[str, int]:
    return dict.fromkeys(names.split(), value)


SIZES: Mapping[str, int] = MappingProxyType(
    {
        **_named(VOCABULARY, "vocab_size vocab_size_per_layer_input"),
        **_named(64, "hidden_size d_model n_embd n_embed dim embedding_size word_embed_proj_dim lru_width"),
        **_named(
            128,
            "intermediate_size ffn_dim n_inner ffn_hidden_size encoder_ffn_dim decoder_ffn_dim "
            "intermediate_size_mlp block_ff_dim feed_forward_size",
        ),
        **_named(512, "max_position_embeddings n_positions n_ctx max_seq_len"),
        **_named(
            4,
            "num_attention_heads n_head n_heads num_heads encoder_attention_heads decoder_attention_heads "
            "num_experts num_local_experts n_routed_experts moe_num_experts num_moe_experts linear_num_heads "
            "zero_expert_num num_codebooks",
        ),
        **_named(
            2,
            "num_key_value_heads num_kv_heads num_experts_per_tok num_experts_per_token moe_k moe_top_k moe_topk "
            "top_k_experts n_group",
        ),
        **_named(1, "topk_group n_shared_experts num_expert_group"),
        **_named(
            16,
            "head_dim qk_nope_head_dim v_head_dim q_lora_rank kv_lora_rank mamba_d_state ssm_state_size "
            "mamba_chunk_size chunk_size linear_head_dim linear_key_head_dim linear_value_head_dim state_size",
        ),
        **_named(
            8,
            "qk_rope_head_dim sliding_window attention_window_size rotary_dim attention_chunk_size window_size "
            "floor_scale time_step_rank mamba_dt_rank",
        ),
        **_named(
            32,
            "moe_intermediate_size shared_expert_intermediate_size hidden_size_per_layer_input "
            "expert_ffn_hidden_size "
            "shared_intermediate_size moe_shared_expert_intermediate_size",
        ),
    }
)

_MLA = {"num_key_value_heads": 4, "head_dim": 8, "qk_head_dim": 24}
_DENSE_TO_SPARSE = {"n_routed_experts": 4, "n_shared_experts": 1, "num_experts_per_tok": 2}
# A random model that scales what it embeds says the same word for ever.
_UNTIED = {"tie_word_embeddings": False}
_MAMBA2 = {"mamba_n_heads": 8, "mamba_d_head": 16, "mamba_n_groups": 2}
_HYBRID = ["linear_attention", "full_attention", "linear_attention", "linear_attention"]

# What the rules above do not get right.
SPECIAL: Mapping[str, Mapping[str, object]] = MappingProxyType(
    {
        "axk1": _MLA,
        "bailing_hybrid": _MLA,
        "bamba": {**_MAMBA2, "attn_layer_indices": [1]},
        "biogpt": _UNTIED,
        "bloom": {"seq_length": 2048, "tie_word_embeddings": False},
        "cohere_compass_text": {
            "rope_parameters": {
                kind: {"rope_type": "default", "rope_theta": 10000.0}
                for kind in ("full_attention", "sliding_attention")
            },
            "layer_types": ["sliding_attention", "full_attention"] * 2,
        },
        "ctrl": {**_UNTIED, "dff": 128},
        "dbrx": {
            "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 1.0},
            "ffn_config": {"ffn_hidden_size": 64, "moe_num_experts": 4, "moe_top_k": 2, "hidden_size": 64},
        },
        "deepseek_v2": {**_MLA, **_DENSE_TO_SPARSE},
        "deepseek_v3": _MLA,
        "dots1": _DENSE_TO_SPARSE,
        "blt": {"encoder_hash_byte_group_vocab": 100},
        "dots3_note_text": {**_MLA, "per_layer_config": {}},
        "gemma": _UNTIED,
        "gemma3": {**_UNTIED, "text_config": _UNTIED},
        "gemma3n_text": {
            "layer_types": ["sliding_attention", "full_attention"] * 2,
            "num_kv_shared_layers": 2,
            "laurel_rank": 8,
        },
        "gemma4_text": {**_UNTIED, "per_layer_config": {"03": {"head_dim": 32}}},
        "gemma4_unified_text": {**_UNTIED, "per_layer_config": {"03": {"head_dim": 32}}},
        "qwen4_exp_text": {
            "indexer_n_heads": 2,
            "indexer_kv_heads": 1,
            "indexer_head_dim": 16,
            "indexer_budget": 16,
            "indexer_compress_ratio": 2,
        },
        "reformer": {"is_decoder": True, "attention_head_size": 16, "axial_pos_embds_dim": [32, 32]},
        "xlm": {"emb_dim": 64},
        "xlnet": {"d_head": 16, "d_inner": 128},
        "zaya": {"num_experts_per_tok": 1},
        "gemma2": _UNTIED,
        "gemma3_text": _UNTIED,
        "glm4_moe_lite": _MLA,
        "granitemoehybrid": {**_MAMBA2, "layer_types": _HYBRID},
        "hunyuan_v1_dense": {"head_dim": 16},
        "hunyuan_v1_moe": {"head_dim": 16},
        "jamba": {"attn_layer_period": 4, "attn_layer_offset": 0},
        "kimi_linear": _MLA,
        "lfm2_moe": {"layer_types": ["conv", "full_attention"] * 2, "num_dense_layers": 1},
        "longcat_flash": _MLA,
        "mamba2": {"num_heads": 8, "head_dim": 16, "n_groups": 2},
        "minicpm3": {**_MLA, **_UNTIED},
        "ministral": {"head_dim": 16, "layer_types": ["sliding_attention", "full_attention"] * 2},
        "nemotron": {"num_key_value_heads": 2},
        "nemotron_h": {"mamba_num_heads": 8, "mamba_head_dim": 16, "n_groups": 2},
        "vaultgemma": _UNTIED,
        "youtu": {**_MLA, **_UNTIED},
        "zamba": {
            "attention_hidden_size": 128,
            "attention_head_dim": 32,
            "num_hidden_layers": 5,
            "num_key_value_heads": 4,
            "layers_block_type": [
                "linear_attention",
                "hybrid",
                "linear_attention",
                "hybrid",
                "linear_attention",
            ],
        },
        "zamba2": {
            "attention_hidden_size": 128,
            "attention_head_dim": 32,
            "num_key_value_heads": 4,
            "mamba_headdim": 16,
            "mamba_ngroups": 2,
            "kv_channels": 16,
            "num_query_groups": 4,
            "num_hidden_layers": 5,
            "adapter_rank": 8,
            "layers_block_type": [
                "linear_attention",
                "hybrid",
                "linear_attention",
                "hybrid",
                "linear_attention",
            ],
            "hybrid_layer_ids": [1, 3],
        },
    }
)

# Further settings under which a family is another one.
VARIANTS: Mapping[str, tuple[str, Mapping[str, object]]] = MappingProxyType(
    {
        "bloom, heads no power of two": ("bloom", {"n_head": 6, "hidden_size": 96}),
        "falcon, alibi": (
            "falcon",
            {"alibi": True, "bias": True, "multi_query": False, "parallel_attn": False, "num_kv_heads": 4},
        ),
        "falcon, alibi and shared keys": ("falcon", {"alibi": True}),
        "falcon, new architecture": ("falcon", {"new_decoder_architecture": True, "num_kv_heads": 2}),
        "gpt_neo, as released": ("gpt_neo", {"attention_types": [[["global", "local"], 2]], "num_layers": 4}),
        "llama4_text, no chunks": ("llama4_text", {"layer_types": ["full_attention"] * 4}),
        "llama, yarn": (
            "llama",
            {
                "rope_parameters": {
                    "rope_type": "yarn",
                    "rope_theta": 10000.0,
                    "factor": 4.0,
                    "original_max_position_embeddings": 128,
                }
            },
        ),
        "mpt, clipped, heads no power of two": (
            "mpt",
            {"n_heads": 6, "d_model": 96, "attn_config": {"clip_qkv": 0.7, "alibi_bias_max": 4}},
        ),
        "qwen3_next, attention alone": ("qwen3_next", {"layer_types": ["full_attention"] * 4}),
        "gemma2, tied": ("gemma2", {"tie_word_embeddings": True, "query_pre_attn_scalar": 1}),
    }
)
