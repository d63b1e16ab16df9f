"""What a hook's answer says, as far as it cannot change from one moment to the next."""

from __future__ import annotations

import dataclasses
from typing import Any

from devicekit_conformance import frozen_contract
from devicekit_conformance.trial import Trial

__all__ = ["FACTS", "fact", "in_order", "tells", "told_everywhere", "told_of"]

FACTS = frozenset(  # hooks whose answer is the same in every process
    {
        "allocator_settings", "can_access_peer", "collective_backend", "copies_overlap", "device_count",
        "device_properties", "is_available", "priority_range", "profiler_activity", "supported_dtypes",
        "visible_devices_variable",
    }
)  # fmt: skip


def fact(trial: Trial) -> list[str]:
    """What the hook says, where that is the same in every process; nothing of hooks whose answers may change."""
    parameters = frozen_contract.hook(trial.hook).parameters
    if trial.hook not in FACTS or parameters not in ((), ("index",)):
        return []
    return [repr(in_order(trial.call(*((trial.index,) if parameters else ()))))]


def in_order(answer: object) -> object:
    """Sets print in any order."""
    return sorted(answer, key=str) if isinstance(answer, frozenset) else answer


def told_of(trial: Trial, arguments: tuple[Any, ...]) -> str:
    """As much of an answer as cannot change from one moment to the next; nothing of hooks that do something."""
    if not frozen_contract.hook(trial.hook).only_looks:
        return ""
    found = trial.ctx.raw_hook(trial.hook)(*arguments)
    if trial.hook in FACTS:
        return repr(in_order(found))
    if dataclasses.is_dataclass(found):
        known = [one.name for one in dataclasses.fields(found) if getattr(found, one.name) is not None]
        return f"{', '.join(known) or 'nothing'}"
    return "nothing" if found is None or found in ((), [], {}, "") else "something"


def told_everywhere(trial: Trial, arguments: tuple[Any, ...]) -> list[str]:
    """What is told of each device, here and in another thread."""
    spec = frozen_contract.hook(trial.hook)
    place = spec.parameters.index("index") if "index" in spec.parameters else None
    asked = [
        arguments if place is None else (*arguments[:place], index, *arguments[place + 1 :])
        for index in (range(trial.count) if place is not None and spec.only_looks else [trial.index])
    ]

    def ask() -> list[str]:
        return [told_of(trial, one) for one in asked]

    return [*ask(), *trial.in_a_thread(ask)]


def tells(trial: Trial, arguments: tuple[Any, ...], before: str) -> None:
    now = told_of(trial, arguments)
    trial.expect(now == before, f"it says {now:.100}, and said {before:.100} just before")
