"""Where the components of a pipeline live between uses, and what is emptied after a large one left.

::

    stages = [
        Stage("encode", (ComponentUse("text_encoder"),)),
        Stage("denoise", (ComponentUse("transformer"),)),
        Stage("decode", (ComponentUse("decoder"),)),
    ]
    modes = {"text_encoder": SnapshotOffload(), "transformer": LayerwiseOffload(), "decoder": SnapshotOffload()}
    residency = Residency(pipeline.components, device, modes)
    with residency.request(stages) as report:
        with residency.stage("encode"):
            text = pipeline.text_encoder(tokens)
        ...
    report.reclaimed("encode")      # bytes that went back to the driver after that stage
"""

from __future__ import annotations

from devicekit.residency.components import Mode
from devicekit.residency.errors import NoLayers, ResidencyError, UndeclaredComponent, UnknownComponent
from devicekit.residency.layerwise import LayerwiseOffload, Placement
from devicekit.residency.manager import Residency
from devicekit.residency.modes import ComponentOffload, Resident, SnapshotOffload, Strategy
from devicekit.residency.prefetching import Prefetch, PrefetchOutcome
from devicekit.residency.report import ComponentRelease, RequestReport
from devicekit.residency.rule import LargeReleaseRule, Released, ReleaseDecision
from devicekit.residency.tensors import ModuleTensors
from devicekit.residency.transfer import Transfer
from devicekit.residency.uses import ComponentUse, Stage

__all__ = [
    "ComponentOffload",
    "ComponentRelease",
    "ComponentUse",
    "LargeReleaseRule",
    "LayerwiseOffload",
    "Mode",
    "ModuleTensors",
    "NoLayers",
    "Placement",
    "Prefetch",
    "PrefetchOutcome",
    "ReleaseDecision",
    "Released",
    "RequestReport",
    "Resident",
    "Residency",
    "ResidencyError",
    "SnapshotOffload",
    "Stage",
    "Strategy",
    "Transfer",
    "UndeclaredComponent",
    "UnknownComponent",
]
