"""What each hook is there for, as something that can be seen from outside.

An effect calls its hook once or a few times, on one device, and compares what happens with torch's own road, with
an independent count, or with what the hook itself said before. It can be run again and again, in any thread, in a
child process, with any device or stream current; so whatever holds of one call is asked of every call.
"""

from __future__ import annotations

import functools
import importlib
import pkgutil
import threading
from collections.abc import Callable, Mapping

from devicekit_conformance import frozen_contract, process_state, processes
from devicekit_conformance.first_use import FirstUse
from devicekit_conformance.surroundings import OF_THE_HOST, Surroundings
from devicekit_conformance.trial import Effect, Trial

__all__ = ["EFFECTS", "effect", "effect_of"]

EFFECTS: dict[str, Effect] = {}


def effect(hook: str) -> Callable[[Effect], Effect]:
    """Enter the effect of a hook."""

    def enter(function: Effect) -> Effect:
        EFFECTS[hook] = function
        return function

    return enter


def effect_of(hook: str) -> Effect:
    """The effect of a hook; for one that has none of its own, that it answers, and answers alike."""
    _enter_all()
    return _leaving_nothing(EFFECTS.get(hook, _answers))


@functools.cache
def _enter_all() -> None:
    """Import every module here, whichever was imported by itself before."""
    for module in pkgutil.iter_modules(__path__):
        importlib.import_module(f"{__name__}.{module.name}")


def _leaving_nothing(run: Effect) -> Effect:
    """The effect, after which the process, the current devices and the streams are what they were.

    What a hook returned changes nothing of them either when it is used.
    """

    def watched(trial: Trial) -> None:
        around = Surroundings(trial.ctx, trial.hook, trial.index, thorough=False)
        before = _of_the_process(trial) if trial.watched and trial.calls[0] == 0 else None
        code = process_state.code() if before is not None else {}
        use = FirstUse(trial.ctx)
        if before is not None:
            trial.since = _since(use, before)
        run(trial)
        trial.since = None
        changed = [one for one in around.changes() if one.startswith("the current")]
        if before is not None:
            changed += process_state.changes(use.without(before), use.without(_of_the_process(trial)))
            changed += use.replaced(code)
        if changed and trial.watched:
            trial.fail(f"{'; '.join(changed[:3])} after what it returned was used")

    return watched


def _since(use: FirstUse, before: Mapping[str, object]) -> Callable[[Mapping[str, object]], list[str]]:
    """What is different at a later call in this thread: who changes it to and fro may leave it as it was."""
    own = threading.get_ident()
    kept = before.keys() - {"the threads", "the thread names"}  # an effect may have some of its own meanwhile

    def changes(now: Mapping[str, object]) -> list[str]:
        if threading.get_ident() != own:
            return []
        was = {name: value for name, value in use.without(before).items() if name in kept & now.keys()}
        return process_state.changes(was, {name: now[name] for name in was})

    return changes


def _of_the_process(trial: Trial) -> dict[str, object]:
    """What no effect changes by itself."""
    found = {**process_state.system_state(), **process_state.python_state(), **process_state.torch_state()}
    found["the files in the working directory"] = process_state.files()
    found["the processes that it started"] = processes.started()
    if trial.ctx.manifest.device_type == "cpu":
        for name in OF_THE_HOST:  # which an effect draws from
            found.pop(name, None)
    return found


def _answers(trial: Trial) -> None:
    from devicekit_conformance.calling import arguments_for

    arguments = arguments_for(trial)
    if arguments is None:
        return
    found = trial.call(*arguments)
    changes = trial.hook == "telemetry" or frozen_contract.hook(trial.hook).creates
    if frozen_contract.hook(trial.hook).missing is frozen_contract.Missing.ANSWER_UNKNOWN and not changes:
        trial.equal(trial.call(*arguments), found, "the second answer")
