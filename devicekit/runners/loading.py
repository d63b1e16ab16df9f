"""Building a model from its directory: whole, or one rank's part of it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from devicekit.contract.text import shown
from devicekit.runners import huggingface as hf
from devicekit.runners import own_attention
from devicekit.runners.attention import ATTENTION_NAME
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.cuts import Cut
from devicekit.runners.default_dtype import built_alone
from devicekit.runners.errors import (
    InvalidModelDirectory,
    ModelError,
    UnsupportedModel,
    first_few,
    one_line,
)
from devicekit.runners.sharding import Sharding, Split
from devicekit.runners.tensor_parallel import Splitter, split_model

_loading = threading.RLock()


def load_model(directory: ModelDirectory, *, dtype: torch.dtype | None) -> hf.PreTrainedModel:
    """The model of a directory in host memory, in ``dtype`` or as the config says.

    Raises InvalidModelDirectory when weights are missing or have the wrong shape: transformers would fill
    them with random numbers.
    """
    _require_layers(directory)
    return _load(directory, directory.read_weights(), dtype, lambda kind: kind)


def load_part(
    directory: ModelDirectory, *, dtype: torch.dtype | None, split: Split, wholes: Mapping[str, Whole]
) -> tuple[hf.PreTrainedModel, Sharding]:
    """One rank's part of a model, as `load_model`. What other ranks hold is dropped while reading, where possible.

    It is possible where the checkpoint stores what is cut under the model's own names, and not in pieces as that
    of some mixtures.

    Args:
        wholes: shape and cut of each parameter that is cut.
    """
    stored = directory.stored_tensors()
    if any(name in stored and stored[name].shape != one.shape for name, one in wholes.items()) or not all(
        name in stored or one.tied_to in stored for name, one in wholes.items()
    ):
        model = load_model(directory, dtype=dtype)
        return model, split_model(model, split, path=directory.path)

    def keep(name: str, tensor: torch.Tensor) -> torch.Tensor:
        return wholes[name].cut.part(tensor, split.rank).clone() if name in wholes else tensor

    _require_layers(directory)
    splitters: list[Splitter] = []

    def cut_when_built(kind: type[hf.PreTrainedModel]) -> type[hf.PreTrainedModel]:
        """A class of the same name whose models are cut before they are given values."""

        def build(model: hf.PreTrainedModel, *args: object, **kwargs: object) -> None:
            kind.__init__(model, *args, **kwargs)
            splitters.append(Splitter(model, split, directory.path))
            splitters[-1].cut()

        made: type[hf.PreTrainedModel] = type(
            kind.__name__, (kind,), {"__init__": build, "__module__": kind.__module__}
        )
        return made

    model = _load(directory, directory.read_weights(keep), dtype, cut_when_built)
    return model, splitters[-1].install()


def _require_layers(directory: ModelDirectory) -> None:
    layers = getattr(directory.config.get_text_config(), "num_hidden_layers", None)
    stored = len(directory.stored_tensors())
    if layers is not None and not 0 < layers <= stored:  # building so many would take for ever
        raise InvalidModelDirectory(
            f"{directory.path}: the config has {layers} layers, and there are {stored} tensors",
            path=str(directory.path),
        )


def _load(
    directory: ModelDirectory,
    weights: dict[str, torch.Tensor],
    dtype: torch.dtype | None,
    prepare: Callable[[type[hf.PreTrainedModel]], type[hf.PreTrainedModel]],
) -> hf.PreTrainedModel:
    with building(directory), quiet():
        kind, config = model_class(directory.config)
        model, info = built_alone(prepare(kind)).from_pretrained(
            None,
            config=config,
            state_dict=weights,
            dtype="auto" if dtype is None else dtype,
            attn_implementation=own_attention.loads_as(config),
            local_files_only=True,
            trust_remote_code=False,
            ignore_mismatched_sizes=True,  # reported below, with everything else that is wrong
            output_loading_info=True,
        )
    model.config.name_or_path = str(directory.path)
    problems = [f"{name} is missing" for name in sorted(info["missing_keys"])]
    problems += [
        f"{name} is {found}, not {wanted}" for name, found, wanted in sorted(info["mismatched_keys"])
    ]
    problems += info["error_msgs"]
    if problems:
        raise InvalidModelDirectory(f"{directory.path}: {first_few(problems)}", path=str(directory.path))
    return model.eval().requires_grad_(False)


def model_class(config: hf.PreTrainedConfig) -> tuple[type[hf.PreTrainedModel], hf.PreTrainedConfig]:
    """The class of a causal language model, and the config that it takes: part of it, where it has parts."""
    found = hf.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    kinds = found if isinstance(found, tuple | list) else (found,)
    named = config.architectures or ()
    kind = next((one for one in kinds if one.__name__ in named), kinds[0])
    text = config.get_text_config()
    return kind, text if kind.config_class is type(text) else config


@contextmanager
def building(directory: ModelDirectory) -> Iterator[None]:
    """A block in which transformers builds the model of a directory: raises UnsupportedModel where it cannot."""
    try:
        yield
    except ModelError:
        raise
    except KeyError as error:
        if error.args != (ATTENTION_NAME,):
            raise _unbuildable(directory, error) from error
        # A few old models keep a table of their own attention classes.
        message = f"{directory.path}: {directory.config.model_type} has attention that cannot be replaced"
        raise UnsupportedModel(message, path=str(directory.path)) from error
    except Exception as error:  # numbers in a config that make no sense come to anything
        raise _unbuildable(directory, error) from error


def _unbuildable(directory: ModelDirectory, error: Exception) -> UnsupportedModel:
    kind = f"{shown(directory.config.model_type)}{directory.settings_behind(error)}"
    said = f"{type(error).__name__}: {one_line(error)[:300]}"
    return UnsupportedModel(
        f"{directory.path}: transformers cannot build the model {kind}: {said}", path=str(directory.path)
    )


@dataclass(frozen=True, slots=True)
class Whole:
    """A parameter that is cut: what it is on all ranks together."""

    shape: tuple[int, ...]
    cut: Cut
    tied_to: str  # the first of its names


def find_wholes(model: hf.PreTrainedModel, sharding: Sharding) -> dict[str, Whole]:
    """Every parameter that is cut, by each of its names. The model may be without memory."""
    first = aliases(model)
    shapes = {
        name: sharding.whole_shape(name, tensor.shape)
        for name, tensor in model.named_parameters(remove_duplicate=False)
    }
    return {name: Whole(shapes[name], cut, first.get(name, name)) for name, cut in sharding.cuts.items()}


def own_tensors(model: hf.PreTrainedModel) -> dict[str, torch.Tensor]:
    """Parameters and persistent buffers; of names that share a tensor, only the first."""
    every_parameter = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    found: dict[str, torch.Tensor] = dict(model.named_parameters())
    found |= {name: tensor for name, tensor in model.state_dict().items() if name not in every_parameter}
    return found


def aliases(model: hf.PreTrainedModel) -> dict[str, str]:
    """Names of parameters that `own_tensors` has under another name, and that name."""
    owner = {id(tensor): name for name, tensor in model.named_parameters()}
    every = {name: owner[id(tensor)] for name, tensor in model.named_parameters(remove_duplicate=False)}
    return {name: first for name, first in every.items() if name != first}


@contextmanager
def quiet() -> Iterator[None]:
    """Let transformers load something in this block, without bars and reports: messages come back as typed errors.

    While it loads, it changes torch's default dtype (see `default_dtype`) and methods of its own classes for the
    whole process, and puts back what it found. Of two at once, one would put back the other's changes, so one
    thread at a time may be in here.
    """
    with _loading:
        bars, verbosity = (
            hf.transformers_logging.is_progress_bar_enabled(),
            hf.transformers_logging.get_verbosity(),
        )
        hf.transformers_logging.disable_progress_bar()
        hf.transformers_logging.set_verbosity_error()
        try:
            yield
        finally:
            hf.transformers_logging.set_verbosity(verbosity)
            if bars:
                hf.transformers_logging.enable_progress_bar()
