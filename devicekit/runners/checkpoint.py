"""A Hugging Face model directory on this machine: opened, checked, never fetched and never executed."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import torch

from devicekit.contract.text import shown
from devicekit.runners import huggingface as hf
from devicekit.runners.blame import settings_behind
from devicekit.runners.documents import Documents
from devicekit.runners.errors import (
    InvalidModelDirectory,
    MissingTokenizer,
    UnsupportedModel,
    one_line,
)
from devicekit.runners.own_attention import knows_no_end
from devicekit.runners.state_layers import MEMORYLESS, RECURRENT
from devicekit.runners.weight_files import Keep, StoredTensor, WeightFile, read_all
from devicekit.scheduling.batch import ModelLimits

_SINGLE = "model.safetensors"
_MOST_COUNTED = 10_000
_INDEX = "model.safetensors.index.json"
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
# What a layer may be if all that it leaves behind for the next token is keys and values. Beside those, a few
# models' recurrent layers are served.
_SERVED_LAYERS = frozenset({"full_attention", "sliding_attention", "attention", *MEMORYLESS})


TABLE = "docs/results/architectures.md"
"""Where every architecture that transformers has stands with what becomes of it."""

_LONGEST = ("max_position_embeddings", "max_seq_len", "seq_length")  # the first that a config has
_WITHOUT_END = 131_072
"""Tokens of the longest sequence where nothing in a model ends: states alone, or a bias in place of embeddings."""


@dataclass(frozen=True, slots=True)
class ModelDirectory:
    """A directory whose config names a causal language model and whose weights are safetensors.

    Every file is read once, and into memory of this process. What is read is one state of the directory: whoever
    writes to it meanwhile makes reading fail.
    """

    path: Path
    config: hf.PreTrainedConfig
    weight_files: tuple[Path, ...] = field(repr=False)
    within: tuple[str, ...] = ()  # directories in which every file has to lie, links followed; none: anywhere
    _documents: Documents = field(kw_only=True, repr=False, compare=False)
    _headers: list[WeightFile] = field(default_factory=list, repr=False, compare=False)
    _tokenizers: list[hf.PreTrainedTokenizerBase] = field(default_factory=list, repr=False, compare=False)

    @classmethod
    def open(cls, path: str | Path, within: Sequence[str] = ()) -> ModelDirectory:
        """Check a directory without reading a weight.

        ``within``: directories, without links in their paths, in which the files of this one have to lie, links
        followed; none: anywhere.

        Raises InvalidModelDirectory when something is missing or unreadable, and UnsupportedModel when it
        holds something other than a causal language model that keeps keys and values.
        """
        root = Path(path)
        if not root.is_dir():
            raise InvalidModelDirectory(f"no model directory at {root}{_download(path)}", path=str(root))
        documents = Documents(root, within)
        config = _read_config(documents)
        _refuse_unserved(root, config)
        return cls(root, config, _find_weights(documents), tuple(within), _documents=documents)

    @property
    def limits(self) -> ModelLimits:
        """Vocabulary, longest sequence and end tokens; raises UnsupportedModel if no longest sequence is known."""
        text = self.config.get_text_config()
        named = (getattr(text, name, None) for name in _LONGEST)
        longest = next((value for value in named if isinstance(value, int)), None)
        if longest is None and (not _attends(text) or knows_no_end(text.model_type)):
            longest = _WITHOUT_END
        if longest is None:
            raise UnsupportedModel(
                f"{self.path}: the config has no max_position_embeddings", path=str(self.path)
            )
        return ModelLimits(text.vocab_size, _stable_positions(text, longest), self._eos_token_ids())

    def settings_behind(self, error: BaseException) -> str:
        """What of the config an error quotes, in brackets; empty: nothing."""
        return settings_behind(error, self._documents.json("config.json"))

    def stored_tensors(self) -> dict[str, StoredTensor]:
        """Name, shape and dtype of every stored tensor, from the headers alone."""
        return {name: one for file in self._weights() for name, one in file.tensors.items()}

    def read_weights(self, keep: Keep | None = None) -> dict[str, torch.Tensor]:
        """Every stored tensor, or what is wanted of it, in memory that nobody else has.

        Raises:
            InvalidModelDirectory: a file cannot be read, or anything that was read here has changed since.
        """
        found = read_all(self._weights(), keep)
        self._documents.require_unchanged()
        return found

    def _weights(self) -> list[WeightFile]:
        if not self._headers:
            self._headers.extend([WeightFile.open(file, self.within) for file in self.weight_files])
        return self._headers

    def tokenizer(self) -> hf.PreTrainedTokenizerBase:
        """The directory's tokenizer, read once; raises MissingTokenizer."""
        if not self._tokenizers:
            self._tokenizers.append(self._read_tokenizer())
        return self._tokenizers[0]

    def _read_tokenizer(self) -> hf.PreTrainedTokenizerBase:
        known = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "tekken.json")
        if not any((self.path / name).is_file() for name in known):
            raise MissingTokenizer(f"{self.path} has no tokenizer ({', '.join(known)})", path=str(self.path))
        try:
            with self._documents.private_copy() as copy:
                made = hf.AutoTokenizer.from_pretrained(copy, local_files_only=True, trust_remote_code=False)
        except Exception as error:  # whatever broken files come to; some are read by libraries that panic
            raise MissingTokenizer(
                f"{self.path}: the tokenizer cannot be loaded: {one_line(error)[:300]}", path=str(self.path)
            ) from error
        made.name_or_path = str(self.path)
        return made

    def _eos_token_ids(self) -> frozenset[int]:
        """The end tokens: a chat model's turns end with tokens that often only one of these files names."""
        named: list[object] = [
            getattr(config, "eos_token_id", None) for config in (self.config, self.config.get_text_config())
        ]
        if self._documents.has("generation_config.json"):
            named.append(self._documents.json("generation_config.json").get("eos_token_id"))
        with contextlib.suppress(MissingTokenizer):
            named.append(self.tokenizer().eos_token_id)
        found: set[int] = set()
        for one in named:
            found.update(
                token for token in (one if isinstance(one, list) else [one]) if isinstance(token, int)
            )
        return frozenset(found)


def _read_config(documents: Documents) -> hf.PreTrainedConfig:
    root, document = documents.root, documents.json("config.json")
    if document.get("auto_map"):
        raise UnsupportedModel(
            f"{root}: config.json asks for code of its own (auto_map), and code from checkpoints is never run",
            path=str(root),
        )
    named = document.get("architectures")
    if named is not None and not (isinstance(named, list) and all(isinstance(one, str) for one in named)):
        raise InvalidModelDirectory(
            f"{root}: architectures in config.json must be a list of texts", path=str(root)
        )
    if (count := _count_of_no_model(document)) is not None:
        raise InvalidModelDirectory(
            f"{root}: config.json says {count}, more than any model has", path=str(root)
        )
    if "model_type" not in document:
        raise InvalidModelDirectory(f"{root}: config.json names no model_type", path=str(root))
    try:
        with documents.private_copy("config.json") as copy:
            config = hf.AutoConfig.from_pretrained(copy, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # each kind of model checks, or does not check, in a way of its own
        named = f"of {shown(document['model_type'])}{settings_behind(error, document)}"
        raise UnsupportedModel(
            f"{root}: transformers cannot use the config {named}: {one_line(error)[:300]}", path=str(root)
        ) from error
    config.name_or_path = str(root)
    return config


def _count_of_no_model(document: Mapping[str, object]) -> str | None:
    """A number of layers or labels, of each of which transformers makes something before anything is checked."""
    for name, value in document.items():
        if isinstance(value, dict) and (found := _count_of_no_model(value)) is not None:
            return found
        counts = any(word in name for word in ("layer", "labels", "blocks"))
        if counts and isinstance(value, (int, float)) and value > _MOST_COUNTED:
            return f"{name[:100]} = {value:.6g}" if value < 1e300 else f"{name[:100]} of over 300 digits"
    return None


def _refuse_unserved(root: Path, config: hf.PreTrainedConfig) -> None:
    def refuse(reason: str) -> UnsupportedModel:
        return UnsupportedModel(f"{root}: {named} {reason}", path=str(root))

    architectures = getattr(config, "architectures", None) or []
    named = (", ".join(architectures) or config.model_type)[:300]
    causal = hf.MODEL_FOR_CAUSAL_LM_MAPPING_NAMES.get(config.model_type)
    names = (causal,) if isinstance(causal, str) else tuple(causal or ())
    if config.is_encoder_decoder:
        raise refuse("is an encoder-decoder model; only decoder-only models are served")
    # Of a model of images and text, the text is served where transformers has a causal model of it.
    whole = hf.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING_NAMES.get(config.model_type)
    if not names or (architectures and not set(architectures) & {*names, whole}):
        raise refuse("is not a causal language model that transformers knows")
    text = config.get_text_config()
    kinds = getattr(text, "layer_types", None) or getattr(text, "layers_block_type", None) or ()
    if not kinds and getattr(text, "attention_chunk_size", None) is not None:
        kinds = ("chunked_attention",)
    recurrent = RECURRENT[text.model_type].kinds if text.model_type in RECURRENT else frozenset()
    chunked = {"chunked_attention"} if text.model_type == "llama4_text" else set()
    others = sorted(set(kinds) - _SERVED_LAYERS - recurrent - chunked)
    if others:
        raise refuse(
            f"has layers of kind {', '.join(others)[:300]}, which are not served: only layers that keep keys and "
            f"values are, and recurrent ones of the families that {TABLE} names"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise refuse("is stored quantised, which this runner does not load")
    if not _attends(text) and text.model_type not in RECURRENT:
        raise refuse(
            "names no attention heads in its config, and is none of the models without attention that are served: "
            f"{', '.join(sorted(one for one in RECURRENT if 'mamba' in one))}"
        )


def _attends(text: hf.PreTrainedConfig) -> bool:
    """Whether a config is of a model with attention: heads of state-space models are called otherwise."""
    return getattr(text, "num_attention_heads", None) is not None


def _find_weights(documents: Documents) -> tuple[Path, ...]:
    root = documents.root
    if documents.has(_INDEX):
        index = documents.json(_INDEX).get("weight_map")
        if not isinstance(index, dict) or not index:
            raise InvalidModelDirectory(f"{root / _INDEX} has no weight_map", path=str(root))
        astray = [name for name in index.values() if not isinstance(name, str) or Path(name).name != name]
        if astray:
            raise InvalidModelDirectory(
                f"{root / _INDEX} names {astray[0]!r:.200}, not a file beside it", path=str(root)
            )
        files = tuple(root / name for name in sorted(set(index.values())))
        absent = [file.name for file in files if not os.path.exists(file)]  # no name is too long for it
        if absent:
            raise InvalidModelDirectory(
                f"{root}: weight files are missing: {', '.join(name[:100] for name in absent[:10])}",
                path=str(root),
            )
        return files
    if (root / _SINGLE).exists():
        return (root / _SINGLE,)
    pickled = sorted(file.name for pattern in _PICKLED for file in root.glob(pattern))
    if pickled:
        raise InvalidModelDirectory(
            f"{root} has only pickled weights ({', '.join(pickled)}), which can run code when read; "
            "save the model as safetensors",
            path=str(root),
        )
    raise InvalidModelDirectory(f"{root} has no weights ({_SINGLE} or {_INDEX})", path=str(root))


def _stable_positions(config: hf.PreTrainedConfig, longest: int) -> int:
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


def _download(path: str | Path) -> str:
    """What to do about a name that looks like one of a model hub, as in ``owner/model``."""
    name = str(path)
    if re.fullmatch(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*", name) is None or Path(name).parent.exists():
        return ""
    folder = name.partition("/")[2]
    return (
        "; models are read from directories only. If it is a name on the Hugging Face hub, download it first: "
        f"hf download {name} --local-dir {folder}, and give {folder}"
    )
