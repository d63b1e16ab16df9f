"""What a verb does that says nothing, what a reply says of what did not happen, and what is left out of a call."""

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Iterator

from devicekit.scheduling.messages import PauseMode, Selector, UpdateOutcome
from devicekit.scheduling.verbs.transaction import Settle
from devicekit.weights.operations import HoldMode

PACKAGES = ("devicekit.scheduling", "devicekit.memory", "devicekit.weights", "devicekit.registry")
_UPDATES = (
    *("UpdateWeights", "UpdateWeightsFromDisk", "UpdateWeightsFromTensor", "UpdateWeightsFromIPC"),
    *("UpdateWeightsFromStream", "UpdateWeightsFromDistributed", "CommitWeights"),
)
_GROUP: dict[str, object] = {"group_name": "weight_update_group"}
# All others are None, False, nothing or none.
DEFAULTS: dict[str, dict[str, object]] = {
    **{name: {"flush_cache": True, "selector": Selector.ALL} for name in _UPDATES},
    **{
        name: {"outcome": UpdateOutcome.UNCHANGED}
        for name in ("UpdateReply", "SessionReply", "TransactionReply")
    },
    **{name: {"selector": Selector.TARGET} for name in ("GetWeights", "ChecksumWeights")},
    "BeginWeightUpdate": {"selector": Selector.ALL},
    "Pause": {"mode": PauseMode.ABORT},
    "Transaction": {"settle": Settle.RETRACT, "flush": True, "resume": True},
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
    "SamplingParams": {
        "max_new_tokens": 128,
        "temperature": 1.0,
        "top_p": 1.0,
        "repetition_penalty": 1.0,
        "skip_special_tokens": True,
        "spaces_between_special_tokens": True,
    },
    "Request": {"column": -1},  # in no batch
    "RankGroup": {"timeout": 300.0, "heartbeat": 1.0},
    "RankGroup.leave": {"mine": True},
    "NewTokenRatio": {"conservativeness": 1.0},
    "ResultProcessor": {"invalid_logits": "refuse"},
    "WaitingQueue": {"policy": "fcfs"},
    "PrefixCache": {"policy": "lru"},
    "as_array": {"number": -1},  # all of them
    "pages_in_reach": {"chunk": 1},
    "plan_kv": {"fraction": 0.9, "min_tokens": 2},
    "handle_from_json": {"where": "handle"},
    "Availability": {"importable": True},
}
DEFAULTS["UpdateWeightsFromStream"]["timeout"] = 300.0
DEFAULTS["UpdateWeightsFromDistributed"] |= _GROUP


def _callables() -> Iterator[tuple[str, object]]:
    for package in PACKAGES:
        for found in pkgutil.walk_packages(importlib.import_module(package).__path__, f"{package}."):
            module = importlib.import_module(found.name)
            for name, one in vars(module).items():
                if getattr(one, "__module__", None) != module.__name__ or name.startswith("_"):
                    continue
                if inspect.isfunction(one):
                    yield name, one
                elif inspect.isclass(one):
                    yield name, one.__init__
                    for of, method in vars(one).items():
                        if inspect.isfunction(method) and not of.startswith("_"):
                            yield f"{name}.{of}", method


def _given(call: object) -> dict[str, object]:
    """What is taken for what is left out: what is made anew for each record aside."""
    try:
        parameters = inspect.signature(call).parameters.values()  # type: ignore[arg-type]
    except ValueError:  # of an exception that has no more to it than its message
        return {}
    left_out = {one.name: one.default for one in parameters if one.default is not one.empty}
    return {
        name: value
        for name, value in left_out.items()
        if value and not callable(value) and repr(value) != "<factory>"
    }


def test_what_is_not_said_means_little_but_for_these() -> None:
    found = {name: given for name, call in _callables() if (given := _given(call))}
    assert found == DEFAULTS
