"""Everything that is used of Hugging Face's packages, and the error if they are not installed.

Importing transformers takes seconds, so each name is imported when it is first used: write ``from
devicekit.runners import huggingface as hf``. Whether the packages are there is checked at once.
"""

from __future__ import annotations

import importlib
import importlib.util
from typing import TYPE_CHECKING

from devicekit.runners.errors import MissingDependency

if TYPE_CHECKING:
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
    from transformers.models.auto.modeling_auto import (
        MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
        MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES,
    )
    from transformers.utils import logging as transformers_logging

__all__ = [
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES",
    "MODEL_FOR_CAUSAL_LM_MAPPING",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES",
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

_ELSEWHERE = {
    "MODEL_FOR_CAUSAL_LM_MAPPING_NAMES": "transformers.models.auto.modeling_auto",
    "MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES": "transformers.models.auto.modeling_auto",
    "SafetensorError": "safetensors",
    "Tokenizer": "tokenizers",
    "safe_open": "safetensors",
    "save_file": "safetensors.torch",
}
_MODULES = {
    **{name: f"tokenizers.{name}" for name in ("decoders", "models", "pre_tokenizers", "trainers")},
    "transformers_logging": "transformers.utils.logging",
}


def _missing(error: object) -> MissingDependency:
    return MissingDependency(
        f"running models needs packages that are not installed or too old ({error}); "
        "get them with: pip install 'devicekit[transformers]'"
    )


for _package in ("numpy", "safetensors", "tokenizers", "transformers"):  # numpy: the batch format
    try:
        _found = importlib.util.find_spec(_package)
    except ImportError as _error:
        raise _missing(_error) from _error
    if _found is None:
        raise _missing(f"No module named '{_package}'")


def __getattr__(name: str) -> object:
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    try:
        if name in _MODULES:
            found: object = importlib.import_module(_MODULES[name])
        else:
            found = getattr(importlib.import_module(_ELSEWHERE.get(name, "transformers")), name)
    except (ImportError, AttributeError) as error:
        raise _missing(error) from error
    globals()[name] = found
    return found
