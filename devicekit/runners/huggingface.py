"""All that is used of Hugging Face's packages, and the error when they are not installed."""

from __future__ import annotations

from devicekit.runners.errors import MissingDependency

try:
    import numpy  # noqa: F401  # the batch format; named here so that its absence gets the same sentence
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save_file
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import (
        MODEL_FOR_CAUSAL_LM_MAPPING,
        AttentionInterface,
        AutoConfig,
        AutoModelForCausalLM,
        AutoTokenizer,
        PreTrainedConfig,
        PreTrainedModel,
        PreTrainedTokenizerBase,
        PreTrainedTokenizerFast,
    )
    from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES
    from transformers.utils import logging as transformers_logging
except ImportError as error:
    raise MissingDependency(
        f"running models needs packages that are not installed or too old ({error}); "
        "get them with: pip install 'devicekit[transformers]'"
    ) from error

__all__ = [
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "AttentionInterface",
    "AutoConfig",
    "AutoModelForCausalLM",
    "AutoTokenizer",
    "PreTrainedConfig",
    "PreTrainedModel",
    "PreTrainedTokenizerBase",
    "PreTrainedTokenizerFast",
    "SafetensorError",
    "Tokenizer",
    "decoders",
    "models",
    "pre_tokenizers",
    "safe_open",
    "save_file",
    "trainers",
    "transformers_logging",
]
