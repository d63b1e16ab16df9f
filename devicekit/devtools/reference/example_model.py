"""A small model, made on the spot: a real checkpoint, and nothing is downloaded."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType

import torch

from devicekit.runners import huggingface as hf
from devicekit.runners.loading import quiet

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
_NONE: Mapping[str, object] = MappingProxyType({})
_TEXT = (
    "A device is opened once and asked for everything: memory, streams, events and the time.",
    "Pages of keys and values are handed out, filled, read and given back.",
    "The scheduler admits a request when there is room and retracts one when there is none.",
    "Weights change while requests wait, and the next token comes from the new ones.",
    "What is unknown is said to be unknown; what was skipped is said to be skipped.",
)


def write_model(
    path: str | Path,
    *,
    seed: int,
    architecture: str = "llama",
    settings: Mapping[str, object] = _NONE,
    chat_template: str | None = None,
) -> Path:
    """Write config, safetensors and tokenizer of a small random float32 model, and return the directory.

    Args:
        seed: different seeds give different weights for the same config.
        architecture: transformers' name of it.
        settings: its config's keys, beside and above the usual ones; ``None`` leaves one out.
        chat_template: Jinja, for its tokenizer; ``None``: it has none.
    """
    root = Path(path)
    tokenizer = _tokenizer()
    tokenizer.chat_template = chat_template
    end = tokenizer.eos_token_id
    keys = {**_COMMON, **settings, "bos_token_id": end, "eos_token_id": end}
    config = hf.AutoConfig.for_model(
        architecture, **{key: value for key, value in keys.items() if value is not None}
    )
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = hf.AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(root)
    tokenizer.save_pretrained(root)
    return root


def _tokenizer() -> hf.PreTrainedTokenizerFast:
    """Byte-level, so that any text goes in and comes out again, with a few learned merges."""
    tokenizer = hf.Tokenizer(hf.models.BPE())
    tokenizer.pre_tokenizer = hf.pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = hf.decoders.ByteLevel()
    trainer = hf.trainers.BpeTrainer(
        vocab_size=_VOCABULARY,
        special_tokens=[_END],
        initial_alphabet=hf.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(_TEXT, trainer)
    return hf.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, eos_token=_END, bos_token=_END, pad_token=_END
    )
