"""A hook that is called while it runs."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

from devicekit_conformance import frozen_contract
from devicekit_conformance.calling import arguments_for
from devicekit_conformance.effects import effect_of
from devicekit_conformance.repeated import within
from devicekit_conformance.replaced import Replaced
from devicekit_conformance.trial import Trial

__all__ = ["interrupted", "reentered"]

_WITH_OTHERS = 0.5  # seconds, in which other hooks are called as well
_PLACES = 60  # of the calls that a hook makes, at most so many are interrupted


def reentered(trial: Trial) -> None:
    """Called while it runs, as a finalizer may that the collector runs in its middle."""
    arguments = arguments_for(trial)
    may_raise = arguments is None  # what changes something may refuse to do it twice
    if arguments is None:
        arguments = _seen_arguments(trial)
    if arguments is None:
        return
    function: Callable[..., object] = _quiet(trial) if may_raise else trial.ctx.raw_hook(trial.hook)
    function(*arguments)
    others, ends = _that_look(trial), time.monotonic() + _WITH_OTHERS
    for place in range(_PLACES):
        raised: list[BaseException] = []

        def call() -> None:
            try:
                token = trial.long_work() if trial.hook == "synchronize" else None
                function(*arguments)
                trial.expect(token is None or token.done(), "called while it runs, it does not wait")
                for other, given in others if time.monotonic() < ends else ():
                    other(*given)
            except BaseException as error:
                raised.append(error)  # noqa: B023  # called at once

        reached = interrupted(lambda: function(*arguments), call, place)
        if raised:
            said = f"{type(raised[0]).__name__}: {str(raised[0])[:200]}"
            trial.fail(f"while it ran it was called, and others that only look, and one raised {said}")
        if not reached:
            return


def _that_look(trial: Trial) -> list[tuple[Callable[..., object], tuple[int, ...]]]:
    """Other hooks that only look, with what to call them with: those that answer now."""
    found: list[tuple[Callable[..., object], tuple[int, ...]]] = []
    for name in sorted(trial.ctx.implemented - {trial.hook, "set_index"}):
        spec = frozen_contract.hook(name)
        if not spec.only_looks or spec.parameters not in ((), ("index",)):
            continue
        given = (trial.index,) if spec.parameters else ()
        with contextlib.suppress(Exception):
            trial.ctx.raw_hook(name)(*given)
            found.append((trial.ctx.raw_hook(name), given))
    return found


def _seen_arguments(trial: Trial) -> tuple[Any, ...] | None:
    """What the hook's own effect calls it with; ``None`` where it does not."""
    function, seen = trial.ctx.raw_hook(trial.hook), list[tuple[Any, ...]]()

    def noting(*arguments: Any) -> object:
        seen.append(arguments)
        return function(*arguments)

    effect_of(trial.hook)(within(trial, "", ctx=Replaced(trial.ctx, trial.hook, noting), watched=False))
    return seen[-1] if seen else None


def _quiet(trial: Trial) -> Callable[..., object]:
    """The hook, without what it raises."""
    function = trial.ctx.raw_hook(trial.hook)

    def call(*arguments: object) -> None:
        with contextlib.suppress(Exception):
            function(*arguments)

    return call


def interrupted(run: Callable[[], object], call: Callable[[], None], place: int) -> bool:
    """Run ``call`` out of one of the calls that the backend's own code makes inside ``run``.

    Returns whether there were so many calls that the one at ``place`` was reached.
    """
    hook: list[FrameType] = []
    left, done = place, False

    def watch(frame: FrameType, event: str, argument: object) -> None:
        nonlocal left, done
        if event == "call" and not hook:
            if frame.f_code is not getattr(run, "__code__", None):
                hook.append(frame)
            return
        caller = frame if event == "c_call" else frame.f_back
        if (
            event not in ("call", "c_call")
            or not hook
            or done
            or caller is None
            or not _is_its_own(caller, hook[0])
        ):
            return
        if left == 0:
            done = True
            sys.setprofile(None)
            call()
        left -= 1

    sys.setprofile(watch)
    try:
        run()
    finally:
        sys.setprofile(None)
    return done


_NOT_ITS_OWN = ("/torch/", "/devicekit/", "/lib/python", "<frozen")


def _is_its_own(frame: FrameType, hook: FrameType) -> bool:
    return frame is hook or not any(part in frame.f_code.co_filename for part in _NOT_ITS_OWN)
