"""Reads weights without changing them, and renames their version."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext

import torch

from devicekit.contract.text import shown
from devicekit.coordination import run_on_all_ranks
from devicekit.scheduling.errors import InvalidOperation
from devicekit.scheduling.messages import Selector
from devicekit.scheduling.verbs.pause import abort_requests
from devicekit.weights.checksum import digest_all
from devicekit.weights.operations import (
    ChecksumReply,
    ChecksumWeights,
    GetWeights,
    UpdateWeightVersion,
    VersionReply,
    Weight,
    WeightsReply,
)
from devicekit.weights.store import Model, WeightStore


def get_weights(store: WeightStore, operation: GetWeights) -> WeightsReply:
    """Copies of weights in host memory.

    Raises:
        InvalidOperation: a name is unknown, or the number of rows is negative.
        Conflict: the memory of the weights is released.
    """
    store.require_mapped()
    if operation.max_rows is not None and operation.max_rows < 0:
        raise InvalidOperation(f"max_rows must be 0 or more, not {operation.max_rows}.")
    known, models = store.tensors(operation.selector), store.selected(operation.selector)
    wanted: list[tuple[str, Selector, str]] = []
    for name in operation.names:
        keys = [(kind, model.aliases.get(name, name)) for kind, model in models.items()]
        matches = [key for key in keys if key in known]
        if not matches:
            raise InvalidOperation(f"There is no weight {shown(name)}.")
        wanted += [(name, *key) for key in matches]
    found: list[Weight] = []
    with store.state.coordinator.exchanging() if _in_parts(models) else nullcontext():
        for name, kind, own in wanted:
            whole = models[kind].whole(own, known[kind, own].detach())
            rows = whole if operation.max_rows is None or not whole.dim() else whole[: operation.max_rows]
            found.append(Weight(name, whole.dtype, tuple(whole.shape), rows.to("cpu", copy=True)))
    return WeightsReply(operation.id, True, weights=tuple(found), weight_version=store.state.weight_version)


def whole_bytes(store: WeightStore, names: Sequence[str], selector: Selector) -> int:
    """Bytes of these weights as wholes. Names that do not exist count as 0."""
    known, models = store.tensors(selector), store.selected(selector)
    sizes = 0
    for name in names:
        for kind, model in models.items():
            own = model.aliases.get(name, name)
            if (tensor := known.get((kind, own))) is not None:
                sizes += math.prod(model.whole_shape(own, tensor)) * tensor.itemsize
    return sizes


def checksum(store: WeightStore, operation: ChecksumWeights) -> ChecksumReply:
    """Digest every weight.

    Raises:
        Conflict: the memory of the weights is released.
    """
    store.require_mapped()
    kinds, ranks = store.selected(operation.selector), store.state.coordinator
    weights = store.tensors(operation.selector).items()

    def wholes() -> Iterator[tuple[str, torch.Tensor]]:
        for (kind, name), tensor in weights:
            shown = name if len(kinds) == 1 else f"{kind.value}:{name}"
            yield shown, kinds[kind].whole(name, tensor)

    if _in_parts(kinds):  # who fails by itself must not keep the others waiting for its part
        with ranks.exchanging():
            total, each = digest_all(wholes())
    else:
        total, each = run_on_all_ranks(ranks, lambda: digest_all(wholes()))
    return ChecksumReply(
        operation.id,
        True,
        total=total,
        tensors=each,
        ranks=tuple(store.state.coordinator.texts(total)),
        weight_version=store.state.weight_version,
    )


def _in_parts(models: Mapping[Selector, Model]) -> bool:
    return any(model.parts is not None for model in models.values())


def total_checksum(store: WeightStore) -> str:
    """The digest of the target model's weights, as `ChecksumReply.total` has it."""
    return checksum(store, ChecksumWeights("")).total


def rename_version(store: WeightStore, operation: UpdateWeightVersion) -> VersionReply:
    """Give the weights another name. Nothing else changes: what is cached stays valid.

    Raises:
        InvalidOperation: the name is empty.
    """
    version, state = operation.weight_version, store.state
    if not version:
        raise InvalidOperation("A weight version needs a name.")
    aborted = 0
    if operation.abort_all_requests:
        aborted = abort_requests(state, list(state.requests.values()), "The weight version is being renamed.")
    changed = version != state.weight_version
    state.requests.name_weights(version)
    return VersionReply(
        operation.id,
        True,
        f"Weight version is {shown(version)}.",
        weight_version=version,
        changed=changed,
        aborted=aborted,
    )
