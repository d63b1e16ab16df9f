"""Registers every operation on weights and memory with a scheduler."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from devicekit.scheduling.messages import Selector, UpdateWeightsFromDisk
from devicekit.scheduling.verbs.control import Control
from devicekit.weights import operations, reading
from devicekit.weights.disk import DiskLoader, disk_handler
from devicekit.weights.distributed import distributed_handler
from devicekit.weights.groups import UpdateGroups
from devicekit.weights.membership import Membership
from devicekit.weights.occupation import MemoryTag, Occupation, Region
from devicekit.weights.prepared import FetchPeer, PreparedUpdates
from devicekit.weights.store import Model, WeightStore
from devicekit.weights.streamed import stream_handler
from devicekit.weights.tensors import ipc_handler, tensor_handler
from devicekit.weights.update import Updater


@dataclass(frozen=True, slots=True)
class WeightControl:
    """The objects behind the operations on weights, for callers that want to look at them."""

    store: WeightStore
    updater: Updater
    groups: UpdateGroups
    occupation: Occupation
    prepared: PreparedUpdates
    membership: Membership
    _loaders: dict[Selector, DiskLoader]

    def register_draft(self, draft: Model, loader: DiskLoader | None = None) -> None:
        """Let operations on weights concern a draft model too, or that one alone if they select it.

        Args:
            loader: loads a model directory into it; without one its weights come from elsewhere.

        Raises:
            Conflict: the memory of the weights is released.
        """
        self.store.require_mapped()
        self.store.models[Selector.DRAFT] = draft
        if loader is not None:
            self._loaders[Selector.DRAFT] = loader


def install(
    control: Control,
    store: WeightStore,
    *,
    loaders: Mapping[Selector, DiskLoader] | None = None,
    regions: Mapping[MemoryTag, Region] | None = None,
    rank: int = 0,
    fetch: FetchPeer | None = None,
) -> WeightControl:
    """Register the handlers of every operation in `devicekit.weights.operations`, and of updates from disk.

    Args:
        loaders: who can load a model directory, by the model it loads.
        regions: what memory can be released besides the weights.
        rank: of this process among the engine's own.
        fetch: begins to read the weights of a peer; default: over its control plane.
    """
    updater, known = Updater(store), dict(loaders or {})
    groups = UpdateGroups(store.device, rank, store.state.coordinator, store.state.withdrawals)
    occupation = Occupation(store, regions or {})
    membership = Membership(store)
    prepared = PreparedUpdates(updater, known, membership, fetch)
    # These close admission themselves, once they only wait for the running requests to end.
    control.register(UpdateWeightsFromDisk, disk_handler(updater, known))
    control.register(operations.UpdateWeightsFromTensor, tensor_handler(updater))
    control.register(operations.UpdateWeightsFromIPC, ipc_handler(updater))
    control.register(operations.UpdateWeightsFromDistributed, distributed_handler(updater, groups))
    control.register(operations.CommitWeights, prepared.commit)
    # These wait from the first for the running requests to end, so that no new ones may start.
    stream = stream_handler(updater, control.begin)
    control.register(operations.UpdateWeightsFromStream, stream, closes_admission=True)
    control.register(operations.BeginWeightUpdate, updater.begin_session, closes_admission=True)
    control.register(operations.PrepareWeights, prepared.prepare)
    control.register(operations.DiscardWeights, prepared.discard)
    control.register(operations.ClaimForFleet, membership.claim)
    control.register(operations.EndClaim, membership.end_claim)
    control.register(operations.HoldForFleet, membership.hold, closes_admission=True)
    control.register(operations.JoinFleet, membership.join)
    control.register(operations.InitUpdateGroup, groups.init)
    control.register(operations.DestroyUpdateGroup, groups.destroy)
    control.register(operations.EndWeightUpdate, updater.session.end)
    control.register(operations.UpdateWeightVersion, lambda one: reading.rename_version(store, one))
    control.register(operations.GetWeights, lambda one: reading.get_weights(store, one))
    control.register(operations.ChecksumWeights, lambda one: reading.checksum(store, one))
    control.register(operations.ReleaseMemory, occupation.release)
    control.register(operations.ResumeMemory, occupation.resume)
    return WeightControl(store, updater, groups, occupation, prepared, membership, known)
