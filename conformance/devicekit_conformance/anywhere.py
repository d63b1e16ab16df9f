"""What an answer must not depend on: who asks, what was called before, and what is current meanwhile."""

from __future__ import annotations

import contextlib
from typing import Any

from devicekit_conformance import frozen_contract
from devicekit_conformance.calling import arguments_for
from devicekit_conformance.context import NotApplicable, NotRun
from devicekit_conformance.printing import printed
from devicekit_conformance.repeated import within, wrong_arguments
from devicekit_conformance.trial import Trial

__all__ = [
    "call_all_others", "initialises_nothing", "refuses_quietly", "same_for_all", "try_all_others",
]  # fmt: skip

_OF_THE_THREAD = frozenset({"current_index", "current_stream", "is_capturing", "set_index"})
_ALONE = 8  # calls that nothing disturbs, to see whether an answer moves by itself
_ROUNDS = 3  # in each of them an answer differs, or it only moved by itself
_FOR_GOOD = frozenset({"set_index", "set_current_stream", "set_memory_fraction"})


def initialises_nothing(trial: Trial) -> None:
    """A hook that may not initialise the device does not: in another thread, and when it is called once more."""
    if not frozen_contract.hook(trial.hook).quiet or trial.ctx.probe.initialised() is not False:
        return
    arguments = arguments_for(trial)
    if arguments is None or trial.ctx.probe.initialised() is not False:
        return  # what it is given has used the device
    function = trial.ctx.raw_hook(trial.hook)
    for where in ("in another thread", "in the thread that goes on"):
        for _ in range(2):
            if where == "in another thread":
                trial.in_a_thread(lambda: function(*arguments))
            else:
                function(*arguments)
            made = trial.ctx.probe.initialised()
            within(trial, where).expect(made is not True, "it initialised the device, which it must not")
    _after_others_that_do_not(trial, arguments)


def refuses_quietly(trial: Trial) -> None:
    """A hook that may not initialise the device does not either when it raises."""
    if not frozen_contract.hook(trial.hook).quiet or trial.ctx.probe.initialised() is not False:
        return
    wrong = wrong_arguments(trial)
    if wrong is None:
        return
    with contextlib.suppress(Exception):
        trial.ctx.raw_hook(trial.hook)(*wrong)
    made = trial.ctx.probe.initialised()
    within(trial, "when it raises").expect(made is not True, "it initialised the device, which it must not")


def _after_others_that_do_not(trial: Trial, arguments: tuple[Any, ...]) -> None:
    """Of every device, and once others were asked that may not initialise it either."""
    for name in sorted(trial.ctx.implemented - {trial.hook}):
        spec = frozen_contract.hook(name)
        if not spec.initialises and spec.parameters in ((), ("index",)):
            with contextlib.suppress(Exception):
                trial.ctx.raw_hook(name)(*((trial.index,) if spec.parameters else ()))
    if trial.ctx.probe.initialised() is not False:
        return  # that is another's fault
    indexed = frozen_contract.hook(trial.hook).parameters[:1] == ("index",)
    for index in range(trial.count):
        trial.ctx.raw_hook(trial.hook)(*((index, *arguments[1:]) if indexed else arguments))
        told = (
            f"asked of device {index} once others were called, it initialised the device, which it must not"
        )
        trial.expect(trial.ctx.probe.initialised() is not True, told)


def same_for_all(trial: Trial, arguments: tuple[Any, ...]) -> None:
    """An answer that stands still is the same in another thread, on another stream and device."""
    if not frozen_contract.hook(trial.hook).only_looks or trial.hook in _OF_THE_THREAD:
        return
    function, stream = trial.ctx.raw_hook(trial.hook), trial.new_stream()

    def ask() -> str:
        found = function(*arguments)
        return repr(printed(sorted(found, key=str) if isinstance(found, frozenset) else found))

    trial.long_work()  # or idle devices might be told alike
    if len({ask() for _ in range(_ALONE)}) > 1:
        return  # it moves by itself: other processes take memory and give it back

    def on_another_stream() -> str:
        with trial.current(trial.index), trial.on(stream):
            return ask()

    def on_another_device() -> str:
        with trial.current((trial.others or [trial.index])[-1]):
            return ask()

    roads = {
        "in another thread": lambda: trial.in_a_thread(ask),
        "on another stream": on_another_stream,
        "with another device current": on_another_device,
    }
    for where, road in roads.items():
        strange: list[str] = []
        for _ in range(_ROUNDS):
            before, there, after = ask(), road(), ask()
            if before != after or there == before:
                break
            strange = [there, before]
        else:
            trial.fail(f"{where} it says {strange[0]:.160}, and here {strange[1]:.160}")
    trial.finish()


def call_all_others(trial: Trial) -> None:
    """Call every other hook, rightly and wrongly, and let the backend see every error that there is."""
    errors = [trial.ctx.probe.exhaust(trial.index)]
    trial.own("empty_cache")
    provoke = getattr(trial.ctx.probe, "provoke", None)
    if callable(provoke):
        kinds = ("device_lost", "wrong_device", "not_initialised")
        errors += [error for kind in kinds if (error := provoke(kind, trial.index)) is not None]
    before = trial.current_index()
    for name in sorted(trial.ctx.implemented - {trial.hook}):
        other = within(trial, "", hook=name, calls=[0], answers=[], watched=False)
        given = (
            [] if name in _FOR_GOOD else [(error,) for error in errors] if name == "classify_error" else None
        )
        if given is None:
            given = [
                one
                for one in (_given(arguments_for, other), _given(wrong_arguments, other))
                if one is not None
            ]
        for arguments in given:
            with contextlib.suppress(Exception):
                _use(trial.ctx.raw_hook(name)(*arguments))
    trial.finish()
    if before is not None:
        trial.select(before)


def _use(handle: object) -> None:
    """Use what a hook returned, where it can be."""
    for name in ("record", "query", "synchronize", "wait", "reset"):
        method = getattr(handle, name, None)
        if callable(method):
            with contextlib.suppress(Exception):
                method()


def try_all_others(trial: Trial) -> None:
    """Call every other hook that takes nothing or a device, where it may well raise."""
    for name in sorted(trial.ctx.implemented - {trial.hook} - _FOR_GOOD):
        parameters = frozen_contract.hook(name).parameters
        if parameters in ((), ("index",)):
            with contextlib.suppress(Exception):
                trial.ctx.raw_hook(name)(*((trial.index,) if parameters else ()))


def _given(make: Any, other: Trial) -> tuple[Any, ...] | None:
    try:
        found: tuple[Any, ...] | None = make(other)
    except (NotRun, NotApplicable):
        return None
    except Exception:
        return None
    return found
