"""A hook called many times over, rightly and wrongly."""

from __future__ import annotations

import dataclasses
import time
from typing import Any

from devicekit_conformance import frozen_contract
from devicekit_conformance.calling import arguments_for
from devicekit_conformance.context import NotApplicable, NotRun
from devicekit_conformance.surroundings import Surroundings
from devicekit_conformance.trial import Trial


def within(trial: Trial, situation: str, **changes: Any) -> Trial:
    """The same trial in another situation, which its failures name."""
    return dataclasses.replace(trial, situation=situation, **changes)


def repeat(trial: Trial, arguments: tuple[Any, ...], calls: int, seconds: float) -> int:
    """Call the hook so many times, or for so long; returns how many times it was."""
    function = trial.ctx.raw_hook(trial.hook)
    ends = time.monotonic() + seconds
    done = 0
    while done < calls and (done < 4 or time.monotonic() < ends):
        try:
            function(*arguments)
        except (NotRun, NotApplicable):
            raise
        except Exception as error:
            trial.fail(f"call {done + 1} in a row raised {type(error).__name__}: {str(error)[:200]}")
        done += 1
    return done


def wrong_arguments(trial: Trial) -> tuple[Any, ...] | None:
    """Arguments that the hook should refuse; ``None`` where there are none."""
    spec = frozen_contract.hook(trial.hook)
    if not spec.parameters or trial.hook == "classify_error":
        return None
    if "index" in spec.parameters:
        if not trial.ctx.manifest.indexed:
            return None
        arguments = arguments_for(trial)
        place = spec.parameters.index("index")
        return None if arguments is None else (*arguments[:place], trial.count + 3, *arguments[place + 1 :])
    return tuple(object() for _ in spec.parameters)


def fail_once(trial: Trial, times: int = 3) -> int:
    """Make the hook raise; returns how often it did. What it leaves behind then is a fault."""
    arguments = wrong_arguments(trial)
    if arguments is None:
        return 0
    function, failed = trial.ctx.raw_hook(trial.hook), 0
    around = Surroundings(trial.ctx, "", trial.index)
    for _ in range(times):
        try:
            function(*arguments)
        except Exception:
            failed += 1
    changed = around.changes()
    if changed and failed:
        within(trial, "when it raises").fail("; ".join(changed[:3]))
    return failed
