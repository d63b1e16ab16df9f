"""The operations on weights and what they answer. Updates from disk are in `devicekit.scheduling.messages`."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, ClassVar

from devicekit.scheduling.messages import Operation, Reply, Selector, UpdateOutcome, UpdateWeights

if TYPE_CHECKING:
    import torch

    from devicekit.weights.bucket import FlatBucket

DEFAULT_GROUP = "weight_update_group"


@dataclass(frozen=True, slots=True)
class UpdateWeightsFromTensor(UpdateWeights):
    """Replace named weights by tensors: given as they are, as safetensors bytes, or in one flat bucket.

    Exactly one of the three. Any subset of the weights may be given; everything is checked before anything is
    written.
    """

    tensors: Mapping[str, torch.Tensor] | None = None
    safetensors: bytes | None = None
    bucket: FlatBucket | None = None


@dataclass(frozen=True, slots=True)
class UpdateWeightsFromIPC(UpdateWeights):
    """Replace named weights by tensors that another process exports with ``Device.export_ipc``.

    The exporter must keep them until this is answered. Handles come as they are, or as `handle_to_json` has them.
    """

    handles: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class UpdateWeightsFromStream(UpdateWeights):
    """Replace weights by what another process puts into a shared buffer, one bucket after the other.

    It is what checkpoint-engine does: the trainer binds a ZeroMQ socket of this machine, sends a handle of its
    buffer, fills the buffer, sends what lies where in it, and waits for an answer before it fills it again.

    Args:
        sockets: address by the device's uuid. Each rank takes its own device's; a device that knows no uuid, the
            only one there is.
        timeout: seconds to wait for each message.
    """

    stages: ClassVar[bool] = False  # the buffer is filled again as soon as it was taken over

    sockets: Mapping[str, str] = field(default_factory=dict)
    timeout: float = 300.0


@dataclass(frozen=True, slots=True)
class InitUpdateGroup(Operation):
    """Join the process group over which a trainer broadcasts weights. The trainer is rank 0."""

    master_address: str = ""
    master_port: int = 0
    world_size: int = 0
    rank_offset: int = 1  # rank of this engine's first process
    group_name: str = DEFAULT_GROUP
    backend: str | None = None  # None: the device's own
    timeout: float = 300.0  # seconds for everybody to join, and for each broadcast later


@dataclass(frozen=True, slots=True)
class DestroyUpdateGroup(Operation):
    """Leave a process group."""

    group_name: str = DEFAULT_GROUP


@dataclass(frozen=True, slots=True)
class UpdateWeightsFromDistributed(UpdateWeights):
    """Replace named weights by what rank 0 of an update group broadcasts, in this order.

    With ``flattened`` it broadcasts one tensor of bytes that holds them all, one after the other.
    """

    names: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()
    group_name: str = DEFAULT_GROUP
    flattened: bool = False


@dataclass(frozen=True, slots=True)
class BeginWeightUpdate(Operation):
    """Open a session of several updates: nothing is generated until `EndWeightUpdate`. Optional."""

    selector: Selector = Selector.ALL


@dataclass(frozen=True, slots=True)
class EndWeightUpdate(Operation):
    """Close the session; its answer sums up what became of the weights."""


@dataclass(frozen=True, slots=True)
class PrepareWeights(Operation):
    """Read weights and check that they fit, a checkpoint's or another engine's, while requests go on.

    `CommitWeights` writes them. The first phase of an update that several engines make as one. Preparing again
    under the same name changes nothing where the path, or the peer, is the same.

    With ``peer`` the target model's weights are read from an engine at that URL, on a thread of their own.
    """

    update_id: str = ""  # the caller's name for it
    path: str = ""  # of a local model directory; or else:
    selector: Selector = Selector.ALL
    lease: str = ""  # of the fleet's claim; with one, what was prepared under another name is forgotten
    peer: str = ""  # URL of an engine that has the weights
    peer_key: str | None = field(default=None, repr=False)  # that opens its control plane
    weight_version: str = ""  # that the peer must have
    checksum: str = ""  # `ChecksumReply.total` that its weights must have
    patience: float = 60.0  # seconds in which a peer must send a mebibyte, or all that is left
    within: tuple[
        str, ...
    ] = ()  # directories in which files below path have to lie, links followed; none: anywhere


@dataclass(frozen=True, slots=True)
class CommitWeights(UpdateWeights):
    """Write what `PrepareWeights` has read. A second commit changes nothing and answers as the first did.

    The selector is that of the preparation.
    """

    update_id: str = ""
    lease: str = ""  # of the fleet's claim, where there is one


@dataclass(frozen=True, slots=True)
class DiscardWeights(Operation):
    """Forget what was prepared; nothing was written. Succeeds if nothing was prepared, too."""

    update_id: str = ""
    lease: str = ""  # of the fleet's claim, where there is one


@dataclass(frozen=True, slots=True)
class ClaimForFleet(Operation):
    """Let one fleet alone steer this engine until `EndClaim`.

    The same fleet may claim again, which ends its earlier leases. Another fleet may not, unless it takes the
    engine over.

    Args:
        again: within one verb, after an earlier claim: refused where another process has claimed the engine since,
            even if it has ended that claim. What the verb would go on with is no longer true then.
    """

    fleet: str = ""  # its identity
    steered_by: str = ""  # who that is, for people
    lease: str = ""  # the word that whatever follows must carry
    take_over: bool = False
    holder: str = ""  # the process that claims; another after every start
    again: bool = False


@dataclass(frozen=True, slots=True)
class EndClaim(Operation):
    """Let others steer. With an old lease nothing changes."""

    lease: str = ""


class HoldMode(str, enum.Enum):
    """What becomes of running requests when a fleet holds an engine."""

    RETRACT = "retract"  # they wait, and are computed anew
    IN_PLACE = "in_place"  # they stop where they are, and keep their keys and values
    FINISH = "finish"  # they come to their end first


@dataclass(frozen=True, slots=True)
class HoldForFleet(Operation):
    """Generate nothing until `JoinFleet`. It is no pause: `Continue` does not end it, a pause outlives it."""

    mode: HoldMode = HoldMode.RETRACT
    # Seconds for what runs to end, with `HoldMode.FINISH`; None: as long as it takes.
    timeout: float | None = None
    lease: str = ""  # of the fleet's claim, where there is one


@dataclass(frozen=True, slots=True)
class JoinFleet(Operation):
    """Say that the weights are the fleet's: an engine that waited for this starts to generate.

    Refused where they are not: another version or, if one is given, another checksum.
    """

    weight_version: str = ""
    checksum: str | None = None  # `ChecksumReply.total`, of the target model
    lease: str = ""  # of the fleet's claim, where there is one


@dataclass(frozen=True, slots=True)
class PreparedReply(Reply):
    """The answer to every operation of a fleet but `CommitWeights`."""

    update_id: str = ""
    tensors: int = 0
    weight_version: str = ""  # that is served
    lease: str = ""  # of the claim that there is
    waiting: bool | None = None  # whether it waits to join; None: not said


@dataclass(frozen=True, slots=True)
class UpdateWeightVersion(Operation):
    """Rename the weights. Neither they nor caches change."""

    weight_version: str = ""
    abort_all_requests: bool = True


@dataclass(frozen=True, slots=True)
class GetWeights(Operation):
    """Read weights by name."""

    names: tuple[str, ...] = ()
    max_rows: int | None = None  # of the first dimension; None: all
    selector: Selector = Selector.TARGET


@dataclass(frozen=True, slots=True)
class ChecksumWeights(Operation):
    """A digest of every weight, equal wherever the same values are."""

    selector: Selector = Selector.TARGET


@dataclass(frozen=True, slots=True)
class GroupReply(Reply):
    """The answer to `InitUpdateGroup` and `DestroyUpdateGroup`."""

    group_name: str = ""
    rank: int | None = None
    backend: str | None = None


@dataclass(frozen=True, slots=True)
class SessionReply(Reply):
    """The answer to `BeginWeightUpdate` and `EndWeightUpdate`."""

    outcome: UpdateOutcome = UpdateOutcome.UNCHANGED
    updates: int = 0  # that succeeded
    failures: int = 0
    tensors: int = 0
    bytes: int = 0
    weight_version: str | None = None


@dataclass(frozen=True, slots=True)
class VersionReply(Reply):
    """The answer to `UpdateWeightVersion`."""

    weight_version: str = ""
    changed: bool = False
    aborted: int = 0


@dataclass(frozen=True, slots=True)
class Weight:
    """A weight as it is now, or its first rows."""

    name: str
    dtype: torch.dtype
    shape: tuple[int, ...]  # of the whole
    values: torch.Tensor  # a copy in host memory


@dataclass(frozen=True, slots=True)
class WeightsReply(Reply):
    """The answer to `GetWeights`."""

    weights: tuple[Weight, ...] = ()
    weight_version: str = ""  # that they are of


@dataclass(frozen=True, slots=True)
class ChecksumReply(Reply):
    """The answer to `ChecksumWeights`: hexadecimal digests."""

    total: str = ""
    ranks: tuple[str, ...] = ()  # the total of each: equal where all have the same weights
    tensors: Mapping[str, str] = field(default_factory=dict)
    weight_version: str = ""


@dataclass(frozen=True, slots=True)
class ReleaseMemory(Operation):
    """Give the memory of these regions back, until `ResumeMemory`. No tags: all there are.

    Refused unless idle. The KV cache is flushed before it goes. Weights are gone, unless ``backup_weights`` keeps
    a copy in host memory; without one, they must be updated after they are resumed.
    """

    tags: tuple[str, ...] = ()
    backup_weights: bool = False


@dataclass(frozen=True, slots=True)
class ResumeMemory(Operation):
    """Take the memory of these regions again. No tags: all there are."""

    tags: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class RegionReport:
    """What an operation did to one region."""

    tag: str
    released: bool  # its state now
    changed: bool
    bytes: int | None = 0  # that changed hands; None: unknown
    backup_bytes: int = 0  # host memory that keeps a copy meanwhile
    present: bool = True  # False: this engine has no such region


@dataclass(frozen=True, slots=True)
class MemoryReply(Reply):
    """The answer to `ReleaseMemory` and `ResumeMemory`."""

    regions: tuple[RegionReport, ...] = ()
    untrusted: int = 0  # weights that have to be updated before generation goes on
