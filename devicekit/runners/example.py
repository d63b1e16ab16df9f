"""Small, real checkpoints made on the spot: for demonstrations, benchmarks and tests that download nothing."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from devicekit.runners.errors import UnsupportedModel
from devicekit.runners.huggingface import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedTokenizerFast,
    Tokenizer,
    decoders,
    models,
    pre_tokenizers,
    trainers,
)
from devicekit.runners.reload import quiet

_END = "<|end|>"
_VOCABULARY = 384
_COMMON: Mapping[str, object] = MappingProxyType(
    {
        "vocab_size": _VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "tie_word_embeddings": False,
        # Wide enough that a random model does not say the same word for ever.
        "initializer_range": 0.2,
    }
)
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

_TEXT = (
    "A device is opened once and asked for everything: memory, streams, events and the time.",
    "Pages of keys and values are handed out, filled, read and given back.",
    "The scheduler admits a request when there is room and retracts one when there is none.",
    "Weights change while requests wait, and the next token comes from the new ones.",
    "What is unknown is said to be unknown; what was skipped is said to be skipped.",
)


def write_example_checkpoint(path: str | Path, *, seed: int, architecture: str = "llama") -> Path:
    """Write config, safetensors and tokenizer of a small random float32 model, and return the directory.

    Different seeds give different weights for the same config. Raises UnsupportedModel for an
    architecture that is not in ``EXAMPLE_ARCHITECTURES``.
    """
    if architecture not in _ARCHITECTURES:
        raise UnsupportedModel(
            f"no example of {architecture!r}; there are {', '.join(EXAMPLE_ARCHITECTURES)}"
        )
    root = Path(path)
    tokenizer = _tokenizer()
    end = tokenizer.eos_token_id
    settings = {**_COMMON, **_ARCHITECTURES[architecture], "bos_token_id": end, "eos_token_id": end}
    config = AutoConfig.for_model(architecture, **{key: v for key, v in settings.items() if v is not None})
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(root)
    tokenizer.save_pretrained(root)
    return root


def _tokenizer() -> PreTrainedTokenizerFast:
    """Byte-level, so that any text goes in and comes out again, with a few learned merges."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=_END, bos_token=_END, pad_token=_END)
