"""What opening an engine asks of its parts: which share of a model it holds, and that it can hold it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from devicekit.contract.errors import ConfigurationError
from devicekit.device import Device
from devicekit.engine.config import EngineConfig
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.errors import InvalidModelDirectory, MissingTokenizer
from devicekit.runners.sharding import Split
from devicekit.runners.transformers_runner import TransformersRunner
from devicekit.weights.store import nonfinite

if TYPE_CHECKING:
    from devicekit.runners.huggingface import PreTrainedTokenizerBase
    from devicekit.scheduling.ranks.group import RankGroup


def split_of(config: EngineConfig, ranks: RankGroup | None) -> Split | None:
    """Which part of the model this rank is to hold; ``None``: all of it."""
    if ranks is None or config.tensor_parallel in (None, 1):
        return None
    return Split(ranks.size, ranks.rank, experts=config.expert_parallel, partly=config.split_partly)


def require_splittable(device: Device, draft: str | Path | None) -> None:
    if draft is not None:
        raise ConfigurationError("a draft model cannot follow one that ranks hold together (tensor_parallel)")
    if not device.collective_backend():
        raise ConfigurationError(
            f"tensor_parallel needs a library by which devices exchange tensors, and backend "
            f"{device.backend.label} names none (collective_backend)"
        )


def refuse_nonfinite(runner: TransformersRunner) -> None:
    if bad := nonfinite(runner.named_weights()):
        path = str(runner.directory.path)
        raise InvalidModelDirectory(f"{path}: {'; '.join(bad[:5])}", path=path)


def tokenizer_of(directory: ModelDirectory) -> PreTrainedTokenizerBase | None:
    try:
        return directory.tokenizer()
    except MissingTokenizer:  # token ids in and out work without; text says what is missing when it is used
        return None
