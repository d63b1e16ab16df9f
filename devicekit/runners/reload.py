"""Reading weights: a model from its directory, and new weights into a model that is being served."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass

import torch

from devicekit.runners import huggingface as hf
from devicekit.runners.attention import ATTENTION_NAME
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.cuts import Cut
from devicekit.runners.errors import CheckpointMismatch, InvalidModelDirectory, UnsupportedModel, one_line
from devicekit.runners.sharding import Sharding, Split
from devicekit.runners.tensor_parallel import Splitter, split_model
from devicekit.runners.weight_files import StoredTensor

# What a config says about its file, its defaults or its tokenizer, and not about the shape of the computation.
_BOOKKEEPING = frozenset(
    {
        "_name_or_path",
        "architectures",
        "bos_token_id",
        "dtype",
        "eos_token_id",
        "pad_token_id",
        "torch_dtype",
        "transformers_version",
        "use_cache",
    }
)
_loading = threading.RLock()


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """What an update wrote."""

    tensors: int
    bytes: int


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
    """One rank's part of a model, as `load_model`. What is not this rank's is let go as it is read, where it can.

    It can where the checkpoint stores what is cut under the model's own names, and not in pieces as that of some
    mixtures.

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
    try:
        with quiet():
            kind, config = _model_class(directory.config)
            model, info = prepare(kind).from_pretrained(
                None,
                config=config,
                state_dict=weights,
                dtype="auto" if dtype is None else dtype,
                attn_implementation=ATTENTION_NAME,
                local_files_only=True,
                trust_remote_code=False,
                ignore_mismatched_sizes=True,  # reported below, with everything else that is wrong
                output_loading_info=True,
            )
    except KeyError as error:
        if error.args != (ATTENTION_NAME,):
            raise _unbuildable(directory, error) from error
        # A few old models keep a table of their own attention classes.
        message = f"{directory.path}: {directory.config.model_type} has attention that cannot be replaced"
        raise UnsupportedModel(message, path=str(directory.path)) from error
    except Exception as error:  # numbers in a config that make no sense come to anything
        raise _unbuildable(directory, error) from error
    model.config.name_or_path = str(directory.path)
    problems = [f"{name} is missing" for name in sorted(info["missing_keys"])]
    problems += [
        f"{name} is {found}, not {wanted}" for name, found, wanted in sorted(info["mismatched_keys"])
    ]
    problems += info["error_msgs"]
    if problems:
        raise InvalidModelDirectory(f"{directory.path}: {_summary(problems)}", path=str(directory.path))
    return model.eval().requires_grad_(False)


def _model_class(config: hf.PreTrainedConfig) -> tuple[type[hf.PreTrainedModel], hf.PreTrainedConfig]:
    """The class of a causal language model, and the config that it takes: part of it, where it has parts."""
    found = hf.MODEL_FOR_CAUSAL_LM_MAPPING[type(config)]
    kinds = found if isinstance(found, tuple | list) else (found,)
    named = config.architectures or ()
    kind = next((one for one in kinds if one.__name__ in named), kinds[0])
    text = config.get_text_config()
    return kind, text if kind.config_class is type(text) else config


def _unbuildable(directory: ModelDirectory, error: Exception) -> UnsupportedModel:
    return UnsupportedModel(
        f"{directory.path}: transformers cannot build the model: {type(error).__name__}: {one_line(error)[:300]}",
        path=str(directory.path),
    )


@dataclass(frozen=True, slots=True)
class StagedModel:
    """Another checkpoint's weights, in host memory, beside the tensors whose place they take."""

    old: dict[str, torch.Tensor]
    new: dict[str, torch.Tensor]
    settle: Callable[[], None]

    def named_tensors(self) -> Iterator[tuple[str, torch.Tensor]]:
        """What would be written, by name."""
        return ((name, self.new[name]) for name in self.old)

    def write(self) -> UpdateRecord:
        """Copy them into the model's own tensors."""
        with torch.no_grad():
            for name, tensor in self.old.items():
                tensor.copy_(self.new[name])
        return UpdateRecord(len(self.old), sum(tensor.nbytes for tensor in self.old.values()))


def stage_update(
    model: hf.PreTrainedModel,
    stored: dict[str, StoredTensor],
    directory: ModelDirectory,
    *,
    dtype: torch.dtype | None,
    settle: Callable[[], None],
    sharding: Sharding,
) -> StagedModel:
    """Read the weights of ``directory`` and compare everything with ``model``, which is left as it is.

    Of what was read only what this rank holds is kept. ``stored`` is what the checkpoint that the model came from
    held. Raises CheckpointMismatch or InvalidModelDirectory.
    """
    _require(directory, _config_differences(model.config, directory.config))
    _require(
        directory, _stored_differences(stored, directory.stored_tensors(), set(model.all_tied_weights_keys))
    )
    if sharding.cuts:
        wholes = find_wholes(model, sharding)
        candidate, _ = load_part(directory, dtype=dtype, split=sharding.split, wholes=wholes)
    else:
        candidate = load_model(directory, dtype=dtype)
    old, new = own_tensors(model), candidate.state_dict()
    _require(directory, _tensor_differences(old, new) or _tie_differences(model, new))
    return StagedModel(old, new, settle)


@dataclass(frozen=True, slots=True)
class Whole:
    """A parameter that is cut: what it is on all ranks together."""

    shape: tuple[int, ...]
    cut: Cut
    tied_to: str  # the first of its names


def find_wholes(model: hf.PreTrainedModel, sharding: Sharding) -> dict[str, Whole]:
    """Every parameter that is cut, by every name of it. Of a model that may be without memory."""
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
    """Let transformers load something, without bars and reports: what they say comes back as typed errors.

    While it loads, it changes torch's default dtype and methods of its own classes for the whole process, and puts
    back what it found: of two at once, one would put back the other's. So one thread at a time.
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


def _config_differences(old: hf.PreTrainedConfig, new: hf.PreTrainedConfig) -> list[str]:
    if old.model_type != new.model_type:
        return [f"config model_type is {new.model_type!r}, not {old.model_type!r}"]
    before, after = old.to_dict(), new.to_dict()
    keys = sorted((before.keys() | after.keys()) - _BOOKKEEPING)
    return [
        f"config {key} is {after.get(key)!r}, not {before.get(key)!r}"
        for key in keys
        if before.get(key) != after.get(key)
    ]


def _stored_differences(
    old: dict[str, StoredTensor], new: dict[str, StoredTensor], tied: set[str]
) -> list[str]:
    problems = []
    for name in sorted(old.keys() | new.keys()):
        before, after = old.get(name), new.get(name)
        if before == after or (name in tied and (before is None or after is None)):
            continue  # some writers store a tied tensor under both its names
        if before is None:
            problems.append(f"{name} is unknown")
        elif after is None:
            problems.append(f"{name} is missing")
        else:
            problems.append(
                f"{name} is {after.dtype} {list(after.shape)}, not {before.dtype} {list(before.shape)}"
            )
    return problems


def _tensor_differences(old: dict[str, torch.Tensor], new: dict[str, torch.Tensor]) -> list[str]:
    return [
        f"{name} cannot take the place of the one that is loaded"
        for name, tensor in old.items()
        if name not in new or new[name].shape != tensor.shape or new[name].dtype != tensor.dtype
    ]


def _tie_differences(model: hf.PreTrainedModel, new: dict[str, torch.Tensor]) -> list[str]:
    """Two names of one tensor in the model must be given one value."""
    owner = {id(tensor): name for name, tensor in model.named_parameters()}
    return [
        f"{name} differs from {owner[id(tensor)]}, and the model holds them in one tensor"
        for name, tensor in model.named_parameters(remove_duplicate=False)
        if not _same_bits(new[name], new[owner[id(tensor)]])
    ]


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Equal to the bit: NaN, which equals nothing, included."""
    return one.data_ptr() == other.data_ptr() or torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8)
    )


def _require(directory: ModelDirectory, problems: list[str]) -> None:
    if problems:
        raise CheckpointMismatch(
            f"{directory.path} does not fit the loaded model, which was left as it was: {_summary(problems)}",
            path=str(directory.path),
            problems=tuple(problems),
        )


def _summary(problems: list[str]) -> str:
    shown = "; ".join(problems[:3])
    return shown if len(problems) <= 3 else f"{shown}; and {len(problems) - 3} more"
