"""A tiny random model of each architecture of transformers: its own default config, every size made small."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    PreTrainedConfig,
    PreTrainedModel,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from tests.architectures.sizes import LAYERS, SIZES, SPECIAL, VARIANTS, VOCABULARY

ARCHITECTURES: tuple[str, ...] = tuple(sorted([*MODEL_FOR_CAUSAL_LM_MAPPING_NAMES, *VARIANTS]))
_MOST_PARAMETERS = 30_000_000


class NoTinyModel(Exception):
    """transformers' own config of an architecture cannot be made small here."""


def write_tiny(
    architecture: str,
    path: Path,
    *,
    seed: int = 0,
    kind: type[AutoModelForCausalLM | AutoModelForImageTextToText] = AutoModelForCausalLM,
) -> Path:
    """Write config and safetensors of a small random float32 model; raises NoTinyModel.

    ``kind``: what transformers makes of the architecture.
    """
    try:
        config = tiny_config(architecture)
        with torch.device("meta"):
            size = sum(one.numel() for one in kind.from_config(config).parameters())
        if size > _MOST_PARAMETERS:
            raise NoTinyModel(f"{size:,} parameters")
        torch.manual_seed(seed)
        model = kind.from_config(config, dtype=torch.float32)
        _scatter(model, seed)
        model.save_pretrained(path)
    except NoTinyModel:
        raise
    except Exception as error:
        raise NoTinyModel(
            f"{type(error).__name__}: {str(error).splitlines()[0][:200] if str(error) else ''}"
        ) from error
    return path


def tiny_config(architecture: str) -> PreTrainedConfig:
    """transformers' default for an architecture, small in every direction."""
    architecture, settings = VARIANTS.get(architecture, (architecture, {}))
    default = AutoConfig.for_model(architecture)
    keys = _shrunk(default.to_dict())
    _set(keys, copy.deepcopy({**SPECIAL.get(architecture, {}), **settings}))
    keys.pop("model_type", None)
    return AutoConfig.for_model(architecture, **keys)


def _set(keys: dict[str, object], settings: Mapping[str, object]) -> None:
    """Overwrite what is named, in parts of a config as well."""
    for name, value in settings.items():
        part = keys.get(name)
        if isinstance(part, dict) and isinstance(value, dict) and _is_part(name):
            _set(part, value)
        else:
            keys[name] = value


def _is_part(name: str) -> bool:
    return name.endswith("config") and name != "per_layer_config"


def _shrunk(keys: Mapping[str, object]) -> dict[str, object]:
    layers = next((keys[name] for name in LAYERS if isinstance(keys.get(name), int)), None)
    kept = _kept_layers(keys, layers) if isinstance(layers, int) else []
    small: dict[str, object] = {}
    for name, value in keys.items():
        if name in ("transformers_version", "dtype", "torch_dtype", "architectures", "_name_or_path"):
            continue
        if isinstance(value, dict) and _is_part(name):
            small[name] = _shrunk(value)
        elif isinstance(value, list) and kept and len(value) == layers:
            small[name] = [value[at] for at in kept]
        elif name in LAYERS and isinstance(value, int):
            small[name] = len(kept)
        elif name in SIZES and isinstance(value, (int, float)) and not isinstance(value, bool):
            small[name] = SIZES[name]
        elif name in SIZES and isinstance(value, list) and set(map(type, value)) == {int} and kept:
            small[name] = [SIZES[name]] * len(kept)
        elif name.endswith("token_id") and isinstance(value, int) and value >= VOCABULARY:
            small[name] = {"pad_token_id": 0, "bos_token_id": 1}.get(name, 2)
        elif name.endswith("token_id") and isinstance(value, list):
            small[name] = 2
        else:
            small[name] = value
    return small


def _kept_layers(keys: Mapping[str, object], layers: int) -> Sequence[int]:
    """Four layers, of each kind at least one where that many will do."""
    lists = [value for value in keys.values() if isinstance(value, list) and len(value) == layers]
    kinds = [tuple(str(one[at]) for one in lists) for at in range(layers)]
    first = sorted({kind: at for at, kind in reversed(list(enumerate(kinds)))}.values())[:4]
    others = [at for at in range(layers) if at not in first]
    return sorted([*first, *others[: max(0, min(4, layers) - len(first))]])


def _scatter(model: PreTrainedModel, seed: int) -> None:
    """Weights wide enough that a random model does not say one word for ever, and no bias or norm left neutral."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.ndim >= 2 and "A_log" not in name:
                fan = weight.shape[-1] if weight.ndim == 2 else max(weight.shape[-2:])
                weight.copy_(noise * (1.2 / fan**0.5))
            else:
                weight.add_(noise * 0.1)
