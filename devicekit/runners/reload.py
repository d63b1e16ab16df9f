"""Updates the weights of a model that is being served: reads new ones beside it, compares, and copies."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from devicekit.contract.text import shown
from devicekit.runners import huggingface as hf
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.errors import CheckpointMismatch, first_few
from devicekit.runners.loading import find_wholes, load_model, load_part, model_class, own_tensors
from devicekit.runners.sharding import Sharding
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


@dataclass(frozen=True, slots=True)
class UpdateRecord:
    """What an update has written."""

    tensors: int
    bytes: int


@dataclass(frozen=True, slots=True)
class StagedModel:
    """Another checkpoint's weights in host memory, with the tensors that they will replace."""

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
    _, config = model_class(directory.config)
    _require(directory, _config_differences(model.config, config))
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


def _config_differences(old: hf.PreTrainedConfig, new: hf.PreTrainedConfig) -> list[str]:
    if old.model_type != new.model_type:
        return [f"config model_type is {shown(new.model_type)}, not {shown(old.model_type)}"]
    before, after = old.to_dict(), new.to_dict()
    keys = sorted((before.keys() | after.keys()) - _BOOKKEEPING)
    return [
        f"config {key} is {shown(after.get(key))}, not {shown(before.get(key))}"
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
    """Names of one tensor of the model for which a checkpoint has different values."""
    owner = {id(tensor): name for name, tensor in model.named_parameters()}
    return [
        f"{name} differs from {owner[id(tensor)]}, and the model holds them in one tensor"
        for name, tensor in model.named_parameters(remove_duplicate=False)
        if not _same_bits(new[name], new[owner[id(tensor)]])
    ]


def _same_bits(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Whether two tensors are equal to the bit, NaN included."""
    return one.data_ptr() == other.data_ptr() or torch.equal(
        one.contiguous().reshape(-1).view(torch.uint8), other.contiguous().reshape(-1).view(torch.uint8)
    )


def _require(directory: ModelDirectory, problems: list[str]) -> None:
    if problems:
        raise CheckpointMismatch(
            f"{directory.path} does not fit the loaded model, which was left as it was: {first_few(problems)}",
            path=str(directory.path),
            problems=tuple(problems),
        )
