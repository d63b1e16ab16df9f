"""What a verb does that says nothing, and what a reply says of what did not happen."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from types import ModuleType

from devicekit.scheduling import limits, messages
from devicekit.scheduling.messages import PauseMode, Selector, UpdateOutcome
from devicekit.weights import operations
from devicekit.weights.operations import HoldMode

_UPDATES = (
    *("UpdateWeights", "UpdateWeightsFromDisk", "UpdateWeightsFromTensor", "UpdateWeightsFromIPC"),
    *("UpdateWeightsFromStream", "UpdateWeightsFromDistributed", "CommitWeights"),
)
_GROUP: dict[str, object] = {"group_name": "weight_update_group"}
# All others are None, False, nothing or none.
DEFAULTS: dict[str, dict[str, object]] = {
    **{name: {"flush_cache": True, "selector": Selector.ALL} for name in _UPDATES},
    **{name: {"outcome": UpdateOutcome.UNCHANGED} for name in ("UpdateReply", "SessionReply")},
    **{name: {"selector": Selector.TARGET} for name in ("GetWeights", "ChecksumWeights")},
    "BeginWeightUpdate": {"selector": Selector.ALL},
    "Pause": {"mode": PauseMode.ABORT},
    "InitUpdateGroup": {"rank_offset": 1, "timeout": 300.0, **_GROUP},
    "DestroyUpdateGroup": _GROUP,
    "PrepareWeights": {"selector": Selector.ALL, "patience": 60.0},
    "HoldForFleet": {"mode": HoldMode.RETRACT},
    "UpdateWeightVersion": {"abort_all_requests": True},
    "RegionReport": {"present": True},
    "SchedulerLimits": {
        "page_size": 16,
        "max_running": 64,
        "max_batch_tokens": 512,
        "policy": "fcfs",
        "prefix_caching": True,
        "conservativeness": 1.0,
        "eviction": "lru",
        "invalid_logits": "refuse",
    },
}
DEFAULTS["UpdateWeightsFromStream"]["timeout"] = 300.0
DEFAULTS["UpdateWeightsFromDistributed"] |= _GROUP


def _records(*modules: ModuleType) -> Iterator[tuple[str, dict[str, object]]]:
    for module in modules:
        for name, one in vars(module).items():
            if isinstance(one, type) and dataclasses.is_dataclass(one) and one.__module__ == module.__name__:
                fields = dataclasses.fields(one)
                yield name, {field.name: field.default for field in fields if field.default}


def test_what_is_not_said_means_little_but_for_these() -> None:
    found = {
        name: {field: value for field, value in given.items() if value is not dataclasses.MISSING}
        for name, given in _records(messages, operations, limits)
    }
    assert {name: given for name, given in found.items() if given} == DEFAULTS
