"""Looking at weights without changing them, and renaming their version."""

from __future__ import annotations

from devicekit.coordination import run_on_all_ranks
from devicekit.scheduling.errors import InvalidOperation
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
from devicekit.weights.store import WeightStore


def get_weights(store: WeightStore, operation: GetWeights) -> WeightsReply:
    """Copies of weights in host memory.

    Raises:
        InvalidOperation: a name is unknown, or the number of rows is negative.
        Conflict: the memory of the weights is released.
    """
    store.require_mapped()
    if operation.max_rows is not None and operation.max_rows < 0:
        raise InvalidOperation(f"max_rows must be 0 or more, not {operation.max_rows}.")
    known = store.tensors(operation.selector)
    found: list[Weight] = []
    for name in operation.names:
        keys = [
            (kind, model.aliases.get(name, name))
            for kind, model in store.selected(operation.selector).items()
        ]
        matches = [known[key] for key in keys if key in known]
        if not matches:
            raise InvalidOperation(f"There is no weight {name!r}.")
        for tensor in matches:
            part = tensor.detach()
            if operation.max_rows is not None and part.dim():
                part = part[: operation.max_rows]
            found.append(Weight(name, tensor.dtype, tuple(tensor.shape), part.to("cpu", copy=True)))
    return WeightsReply(operation.id, True, weights=tuple(found))


def checksum(store: WeightStore, operation: ChecksumWeights) -> ChecksumReply:
    """Digest every weight.

    Raises:
        Conflict: the memory of the weights is released.
    """
    store.require_mapped()
    kinds = store.selected(operation.selector)
    weights = store.tensors(operation.selector).items()
    total, each = run_on_all_ranks(
        store.state.coordinator,
        lambda: digest_all(
            (name if len(kinds) == 1 else f"{kind.value}:{name}", tensor) for (kind, name), tensor in weights
        ),
    )
    return ChecksumReply(
        operation.id,
        True,
        total=total,
        tensors=each,
        ranks=tuple(store.state.coordinator.texts(total)),
        weight_version=store.state.weight_version,
    )


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
        f"Weight version is {version!r}.",
        weight_version=version,
        changed=changed,
        aborted=aborted,
    )
