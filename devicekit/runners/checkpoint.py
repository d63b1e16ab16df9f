"""A Hugging Face model directory on this machine: opened, checked, never fetched and never executed."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from devicekit.runners.errors import (
    InvalidModelDirectory,
    MissingTokenizer,
    UnsupportedModel,
    one_line,
)
from devicekit.runners.huggingface import (
    MODEL_FOR_CAUSAL_LM_MAPPING_NAMES,
    AutoConfig,
    AutoTokenizer,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    SafetensorError,
    safe_open,
)
from devicekit.runners.state_layers import RECURRENT
from devicekit.scheduling.batch import ModelLimits

_SINGLE = "model.safetensors"
_INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What a layer may be if all that it leaves behind for the next token is keys and values. Beside those, a few
# models' recurrent layers are served.
_SERVED_LAYERS = frozenset({"full_attention", "sliding_attention", "attention"})


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """A tensor in a checkpoint file, known from the file's header."""

    shape: tuple[int, ...]
    dtype: str  # as safetensors spells it: F32, BF16, F8_E4M3…

    def __str__(self) -> str:
        return f"{self.dtype} {list(self.shape)}"


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A directory whose config names a causal language model and whose weights are safetensors."""

    path: Path
    config: PreTrainedConfig
    weight_files: tuple[Path, ...] = field(repr=False)
    _tokenizers: list[PreTrainedTokenizerBase] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path) -> ModelDirectory:
        """Check a directory without reading a weight.

        Raises InvalidModelDirectory when something is missing or unreadable, and UnsupportedModel when it
        holds something other than a causal language model that keeps keys and values.
        """
        root = Path(path)
        if not root.is_dir():
            raise InvalidModelDirectory(f"no model directory at {root}", path=str(root))
        config = _read_config(root)
        _refuse_unserved(root, config)
        return cls(root, config, _find_weights(root))

    @property
    def limits(self) -> ModelLimits:
        """Vocabulary, longest sequence and end tokens; raises UnsupportedModel if no longest sequence is known."""
        text = self.config.get_text_config()
        longest = getattr(text, "max_position_embeddings", None)
        if longest is None:
            raise UnsupportedModel(
                f"{self.path}: the config has no max_position_embeddings", path=str(self.path)
            )
        return ModelLimits(text.vocab_size, _stable_positions(text, longest), self._eos_token_ids())

    def stored_tensors(self) -> dict[str, StoredTensor]:
        """Name, shape and dtype of every stored tensor, from the headers alone."""
        found: dict[str, StoredTensor] = {}
        for file in self.weight_files:
            try:
                with safe_open(file, framework="pt") as opened:
                    for name in opened.keys():  # noqa: SIM118  # not a dict: it cannot be iterated
                        part = opened.get_slice(name)
                        found[name] = StoredTensor(tuple(part.get_shape()), part.get_dtype())
            except (SafetensorError, OSError) as error:
                raise InvalidModelDirectory(
                    f"{file} cannot be read as safetensors: {one_line(error)}", path=str(self.path)
                ) from error
        return found

    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The directory's tokenizer, read once; raises MissingTokenizer."""
        if not self._tokenizers:
            self._tokenizers.append(self._read_tokenizer())
        return self._tokenizers[0]

    def _read_tokenizer(self) -> PreTrainedTokenizerBase:
        known = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
        if not any((self.path / name).is_file() for name in known):
            raise MissingTokenizer(f"{self.path} has no tokenizer ({', '.join(known)})", path=str(self.path))
        try:
            return AutoTokenizer.from_pretrained(self.path, local_files_only=True, trust_remote_code=False)
        except (OSError, ValueError, KeyError, ImportError) as error:
            raise MissingTokenizer(
                f"{self.path}: the tokenizer cannot be loaded: {one_line(error)}", path=str(self.path)
            ) from error

    def _eos_token_ids(self) -> frozenset[int]:
        """The end tokens: a chat model's turns end with tokens that often only one of these files names."""
        named: list[object] = [
            getattr(config, "eos_token_id", None) for config in (self.config, self.config.get_text_config())
        ]
        if (self.path / "generation_config.json").is_file():
            named.append(_read_json(self.path, "generation_config.json").get("eos_token_id"))
        with contextlib.suppress(MissingTokenizer):
            named.append(self.tokenizer().eos_token_id)
        found: set[int] = set()
        for one in named:
            found.update(
                token for token in (one if isinstance(one, list) else [one]) if isinstance(token, int)
            )
        return frozenset(found)


def _read_config(root: Path) -> PreTrainedConfig:
    document = _read_json(root, "config.json")
    if document.get("auto_map"):
        raise UnsupportedModel(
            f"{root}: config.json asks for code of its own (auto_map), and code from checkpoints is never run",
            path=str(root),
        )
    if "model_type" not in document:
        raise InvalidModelDirectory(f"{root}: config.json names no model_type", path=str(root))
    try:
        return AutoConfig.from_pretrained(root, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UnsupportedModel(
            f"{root}: transformers cannot use config.json: {one_line(error)}", path=str(root)
        ) from error


def _refuse_unserved(root: Path, config: PreTrainedConfig) -> None:
    def refuse(reason: str) -> UnsupportedModel:
        return UnsupportedModel(f"{root}: {named} {reason}", path=str(root))

    architectures = getattr(config, "architectures", None) or []
    named = ", ".join(architectures) or config.model_type
    causal = MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    names = (causal,) if isinstance(causal, str) else tuple(causal or ())
    if config.is_encoder_decoder:
        raise refuse("is an encoder-decoder model; only decoder-only models are served")
    if not names or (architectures and not set(architectures) & set(names)):
        raise refuse("is not a causal language model that transformers knows")
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()
    if not kinds and getattr(text, "attention_chunk_size", None) is not None:
        kinds = ("chunked_attention",)
    recurrent = {RECURRENT[text.model_type][0]} if text.model_type in RECURRENT else set()
    others = sorted(set(kinds) - _SERVED_LAYERS - recurrent)
    if others:
        raise refuse(
            f"has layers of kind {', '.join(others)}, which are not served: only layers that keep keys and "
            f"values are, and the recurrent ones of {', '.join(sorted(RECURRENT))}"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise refuse("is stored quantised, which this runner does not load")
    if getattr(text, "num_attention_heads", None) is None:
        raise refuse(
            "keeps a recurrent state instead of keys and values (Mamba, RWKV and the like); not served"
        )


def _find_weights(root: Path) -> tuple[Path, ...]:
    if (root / _INDEX).is_file():
        index = _read_json(root, _INDEX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise InvalidModelDirectory(f"{root / _INDEX} has no weight_map", path=str(root))
        astray = [name for name in index.values() if not isinstance(name, str) or Path(name).name != name]
        if astray:
            raise InvalidModelDirectory(
                f"{root / _INDEX} names {astray[0]!r}, not a file beside it", path=str(root)
            )
        files = tuple(root / name for name in sorted(set(index.values())))
        absent = [file.name for file in files if not file.is_file()]
        if absent:
            raise InvalidModelDirectory(
                f"{root}: weight files are missing: {', '.join(absent)}", path=str(root)
            )
        return files
    if (root / _SINGLE).is_file():
        return (root / _SINGLE,)
    pickled = sorted(file.name for pattern in _PICKLED for file in root.glob(pattern))
    if pickled:
        raise InvalidModelDirectory(
            f"{root} has only pickled weights ({', '.join(pickled)}), which can run code when read; "
            "save the model as safetensors",
            path=str(root),
        )
    raise InvalidModelDirectory(f"{root} has no weights ({_SINGLE} or {_INDEX})", path=str(root))


def _read_json(root: Path, name: str) -> Mapping[str, Any]:
    try:
        document = json.loads((root / name).read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InvalidModelDirectory(f"{root} has no {name}", path=str(root)) from error
    except (OSError, ValueError) as error:
        raise InvalidModelDirectory(
            f"{root / name} cannot be read: {one_line(error)}", path=str(root)
        ) from error
    if not isinstance(document, dict):
        raise InvalidModelDirectory(f"{root / name} is not a JSON object", path=str(root))
    return document


def _stable_positions(config: PreTrainedConfig, longest: int) -> int:
    """The longest sequence up to which rotary embeddings do not depend on what else is in the batch.

    "dynamic" and "longrope" switch frequencies by the longest position of the forward pass.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    scalings = [part for part in (rope, *rope.values()) if isinstance(part, Mapping)]
    for scaling in scalings:
        if scaling.get("rope_type") in ("dynamic", "longrope"):
            original = scaling.get("original_max_position_embeddings") or getattr(
                config, "original_max_position_embeddings", None
            )
            longest = min(longest, original or longest)
    return int(longest)
