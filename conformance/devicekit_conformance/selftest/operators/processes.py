"""Which process: right in the one that loaded the backend only."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from functools import partial

from devicekit.contract.hooks import HOOKS
from devicekit_conformance.selftest.building import Body, Call, Unmakeable, faulty, neutral
from devicekit_conformance.selftest.honest import machine
from devicekit_conformance.selftest.operators import Fault, operator, sentence
from devicekit_conformance.selftest.operators.threads import SAME_WHEN_NEUTRAL


def _in_a_child(otherwise: Callable[[str, Call], object], hook: str) -> type:
    """A backend whose hook is right in the process that constructed it."""

    def constructed(self: object) -> None:
        self.born = os.getpid()  # type: ignore[attr-defined]

    def body(call: Call) -> object:
        return call.forward() if os.getpid() == call.backend.born else otherwise(hook, call)

    return faulty({hook: body}, __init__=constructed)


def _raises(hook: str, call: Call) -> object:
    raise RuntimeError("this process was forked")


def _hangs(hook: str, call: Call) -> object:
    while True:
        time.sleep(1)


@operator("process")
def forked_children_are_told_nothing() -> Iterator[Fault]:
    """In a child that was forked before the device was used, a hook does nothing, or answers 0."""
    for hook in HOOKS:
        if hook in SAME_WHEN_NEUTRAL or hook == "is_capturing":
            continue
        try:
            neutral(hook)
        except Unmakeable:
            continue
        make = partial(_in_a_child, lambda hook, call: neutral(hook), hook)
        yield Fault(hook, "", sentence(hook), make)


@operator("process")
def forked_children_are_refused() -> Iterator[Fault]:
    """In a child that was forked before the device was used, a hook raises."""
    for hook in HOOKS:
        yield Fault(hook, "", sentence(hook), partial(_in_a_child, _raises, hook))


@operator("process")
def forked_children_hang() -> Iterator[Fault]:
    """In a child that was forked before the device was used, a hook does not return."""
    for hook in list(HOOKS)[::5]:
        yield Fault(hook, "", sentence(hook), partial(_in_a_child, _hangs, hook))


@operator("process")
def forks_of_a_used_device_are_invented_for() -> Iterator[Fault]:
    """In a child that was forked after the device was used, a hook answers 0, as if all were well."""

    def body(hook: str) -> Body:
        return lambda call: neutral(hook) if machine().in_bad_fork() else call.forward()

    for hook in ("memory_stats", "memory_snapshot", "is_bad_fork", "memory_info"):
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body(hook)}))


@operator("process")
def forks_of_a_used_device_do_not_return() -> Iterator[Fault]:
    """In a child that was forked after the device was used, an observing hook does not return."""

    def body(call: Call) -> object:
        return _hangs("", call) if machine().in_bad_fork() else call.forward()

    for hook in (
        "memory_stats",
        "memory_snapshot",
        "is_bad_fork",
        "is_available",
        "device_count",
        "classify_error",
    ):
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body}))


@operator("process")
def forks_of_a_used_device_are_refused_presence() -> Iterator[Fault]:
    """In a child that was forked after the device was used, what never raises raises."""

    def body(call: Call) -> object:
        if machine().in_bad_fork():
            raise RuntimeError("cannot be used in a forked process")
        return call.forward()

    for hook in ("memory_stats", "memory_snapshot", "is_bad_fork", "is_available", "device_count",
                 "classify_error",
                 "is_capturing"):  # fmt: skip
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: body}))


@operator("process")
def every_process_is_a_bad_fork() -> Iterator[Fault]:
    """A process is called a bad fork that is none."""
    told = sentence("is_bad_fork")
    yield Fault("is_bad_fork", "always", told, partial(faulty, {"is_bad_fork": lambda call: True}))

    def constructed(self: object) -> None:
        self.born = os.getpid()  # type: ignore[attr-defined]

    forked = lambda call: os.getpid() != call.backend.born  # noqa: E731
    yield Fault("is_bad_fork", "any", told, partial(faulty, {"is_bad_fork": forked}, __init__=constructed))
    used = lambda call: machine().initialized  # noqa: E731
    yield Fault("is_bad_fork", "used", told, partial(faulty, {"is_bad_fork": used}))
