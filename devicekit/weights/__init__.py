"""Replacing a model's weights while it serves, looking at them, and giving their memory away for a while.

`install` teaches a scheduler the verbs; `operations` has every verb and its answer. A `WeightStore` is the model
as these verbs see it, a `Region` is memory that can be released and taken again.
"""

from devicekit.weights.install import WeightControl
from devicekit.weights.occupation import MemoryTag, Region
from devicekit.weights.operations import (
    BeginWeightUpdate,
    ChecksumReply,
    ChecksumWeights,
    CommitWeights,
    DestroyUpdateGroup,
    DiscardWeights,
    EndWeightUpdate,
    GetWeights,
    GroupReply,
    InitUpdateGroup,
    JoinFleet,
    MemoryReply,
    PreparedReply,
    PrepareWeights,
    RegionReport,
    ReleaseMemory,
    ResumeMemory,
    SessionReply,
    UpdateWeightsFromDistributed,
    UpdateWeightsFromIPC,
    UpdateWeightsFromStream,
    UpdateWeightsFromTensor,
    UpdateWeightVersion,
    VersionReply,
    Weight,
    WeightsReply,
)
from devicekit.weights.store import Model, WeightSource, WeightStore

__all__ = [
    "BeginWeightUpdate",
    "ChecksumReply",
    "ChecksumWeights",
    "CommitWeights",
    "DestroyUpdateGroup",
    "DiscardWeights",
    "EndWeightUpdate",
    "GetWeights",
    "GroupReply",
    "InitUpdateGroup",
    "JoinFleet",
    "MemoryReply",
    "MemoryTag",
    "Model",
    "Region",
    "PrepareWeights",
    "PreparedReply",
    "RegionReport",
    "ReleaseMemory",
    "ResumeMemory",
    "SessionReply",
    "UpdateWeightVersion",
    "UpdateWeightsFromDistributed",
    "UpdateWeightsFromIPC",
    "UpdateWeightsFromStream",
    "UpdateWeightsFromTensor",
    "VersionReply",
    "Weight",
    "WeightControl",
    "WeightSource",
    "WeightStore",
    "WeightsReply",
]
