"""What a child may be told that was forked after its parent used the device."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch

from devicekit_conformance import frozen_contract
from devicekit_conformance.trial import Trial

__all__ = ["judge", "locked_memory"]

_LOCKED = 3 << 20  # bytes
_NOTHING_WILL_DO = frozenset({"host_memory_stats"})  # of which 0 may stand for what is unknown

_NEVER_RAISE = frozenset({
    "is_available", "device_count", "memory_stats", "memory_snapshot", "is_bad_fork", "is_capturing",
    "classify_error",
    "collective_backend", "visible_devices_variable",
})  # fmt: skip
_PRESENCE = ("device_count", "is_available")
_FACTS = frozenset({*_PRESENCE, "collective_backend", "visible_devices_variable"})


def judge(trial: Trial, arguments: tuple[Any, ...] | None, told: object) -> None:
    """Fail where the hook invents, raises where it never may, or denies that the device is lost.

    Args:
        told: what the parent was told.
    """
    works = _works(trial)
    function: Any = trial.ctx.raw_hook(trial.hook)
    try:
        found = function(*(arguments or ()))
    except Exception as error:
        trial.expect(trial.hook not in _NEVER_RAISE, f"it raised {type(error).__name__}: {str(error)[:160]}")
        return
    if trial.hook in _PRESENCE and not found and not works:
        _is_gone(trial)
    elif trial.hook in _FACTS:
        trial.expect(found == told, f"it says {found!r}, and the parent was told {told!r}")
    _invents_nothing(trial, found, told)
    if trial.hook == "is_bad_fork":
        trial.expect(found is True or works, "it is False, and the device cannot be used")
    if works:
        return
    if trial.hook == "memory_stats":
        given = [name for name in frozen_contract.STATS_FIELDS if getattr(found, name) is not None]
        trial.expect(
            not given, f"the device cannot be used, and {', '.join(given)} have numbers instead of None"
        )
        state = getattr(found.state, "value", found.state)
        trial.expect(
            state in ("bad_fork", "unsupported"), f"the device cannot be used, and the state is {state!r}"
        )
    if frozen_contract.hook(trial.hook).sees_no_parent:
        _sees_nothing(trial, found)
    if trial.hook == "classify_error":
        _names_the_fork(trial)


def _sees_nothing(trial: Trial, found: object) -> None:
    """No number and no list: what its parent has is not there."""
    told = "the device cannot be used, and "
    if not dataclasses.is_dataclass(found):
        what = "there is a list of segments" if isinstance(found, list | tuple) else f"it says {found!r:.80}"
        trial.expect(found is None, f"{told}{what} instead of None")
        return
    for one in dataclasses.fields(found):
        value = getattr(found, one.name)
        known = isinstance(value, int | float) and not isinstance(value, bool) and value != 0
        trial.expect(not known, f"{told}{one.name} is {value!r}")


def locked_memory(trial: Trial) -> list[object]:
    """Page-locked memory of each kind that the backend has, to be held meanwhile."""
    kept: list[object] = []
    if trial.has("pin_memory") and trial.ctx.claims("pinned_memory") and trial.hook != "pin_memory":
        kept.append(trial.other("pin_memory", torch.ones(_LOCKED, dtype=torch.uint8)))
    return kept


def _invents_nothing(trial: Trial, found: object, told: object) -> None:
    """What cannot be known is unknown: no 0 for a number that is none, and no empty list for a full one."""
    spec = frozen_contract.hook(trial.hook)
    if not spec.only_looks:
        return
    if dataclasses.is_dataclass(told) and type(found) is type(told):
        for one in dataclasses.fields(told):
            was, now = getattr(told, one.name), getattr(found, one.name)
            empty = now is not None and not isinstance(now, bool | dict) and not now
            nothing = trial.hook in _NOTHING_WILL_DO or not was
            trial.expect(not empty or nothing, f"{one.name} is {now!r}, and the parent was told {was!r}")
    elif isinstance(told, list | tuple | frozenset) and told and trial.hook != "process_memory":
        # Of processes a child may be told of itself only.
        trial.expect(
            found is None or bool(found), f"it says {found!r}, and the parent was told of {len(told)}"
        )


def _is_gone(trial: Trial) -> None:
    """Where the device cannot be used, it may be there no more, if both hooks say so."""
    count, available = (trial.ctx.raw_hook(name)() for name in _PRESENCE)
    told = f"device_count() is {count} and is_available() {available}"
    trial.expect(not count and not available, told)


def _works(trial: Trial) -> bool:
    try:
        block = trial.filled(4096, 5)
        return bool((block == 5).all().item())
    except Exception:
        return False


def _names_the_fork(trial: Trial) -> None:
    try:
        trial.tensor(4096)
    except Exception as error:
        kind = trial.ctx.raw_hook("classify_error")(error)
        value = getattr(kind, "value", None)
        trial.equal(
            value, "not_initialised", f"what {type(error).__name__}({str(error)[:80]!r}) is taken for"
        )
