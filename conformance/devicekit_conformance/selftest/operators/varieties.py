"""Right for what is ordinary, and wrong for one kind: of stream, of event, of process, or of what is asked for."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from devicekit.contract.hooks import HOOKS
from devicekit_conformance import frozen_contract
from devicekit_conformance.selftest.building import Body, Call, faulty
from devicekit_conformance.selftest.honest import machine
from devicekit_conformance.selftest.operators import Fault, operator, sentence
from devicekit_conformance.selftest.operators.handles import Method, changed_handles, methods_of_handles

_KINDS: dict[str, Callable[[Any], bool]] = {
    "default": lambda one: getattr(one, "stream_id", None) == 0,
    "urgent": lambda one: getattr(one, "priority", 0) < 0,
    "timed": lambda one: bool(getattr(one, "enable_timing", False)),
}


def _nothing_where(matches: Callable[..., bool]) -> Callable[[Method], Method]:
    def change(honest: Method) -> Method:
        return lambda self, *given: None if matches(self, *given) else honest(self, *given)

    return change


def _waiting_where(matches: Callable[..., bool]) -> Callable[[Method], Method]:
    def change(honest: Method) -> Method:
        def method(self: Any) -> object:
            if matches(self):
                self.synchronize()
            return honest(self)

        return method

    return change


@operator("handle")
def a_method_fails_one_kind() -> Iterator[Fault]:
    """A method of a stream or event does nothing, or waits, for urgent ones or timed ones."""
    own = {"create_stream": "urgent", "create_event": "timed"}
    for hook, method, told in methods_of_handles():
        kind = own.get(hook)
        if kind is None or method == "elapsed_time":
            continue

        def matches(self: Any, *given: Any, kind: str = kind) -> bool:
            return _KINDS[kind](self)

        change = (_waiting_where if method == "query" else _nothing_where)(matches)
        yield Fault(hook, f"{method}_{kind}", told, partial(changed_handles, hook, method, change))


@operator("handle")
def a_method_fails_with_one_kind() -> Iterator[Fault]:
    """A method of a stream or event does nothing where it is given the default stream or an urgent one."""
    for hook, method, told in methods_of_handles("wait_stream", "record", "wait"):
        for kind in ("default", "urgent") if hook != "default_stream" else ("urgent",):

            def matches(self: Any, *given: Any, kind: str = kind) -> bool:
                return bool(given) and given[0] is not None and _KINDS[kind](given[0])

            make = partial(changed_handles, hook, method, _nothing_where(matches))
            yield Fault(hook, f"{method}_{kind}", told, make)


@operator("stream")
def one_kind_of_stream_is_not_used() -> Iterator[Fault]:
    """Where a stream is an urgent one, a hook means the default one instead."""

    def of(stream: Any) -> Any:
        urgent = _KINDS["urgent"](stream)
        return machine().devices[stream.device_index].default_stream if urgent else stream

    given: Body = lambda call: call.honest(of(call.arguments[0]))  # noqa: E731
    found: Body = lambda call: of(call.forward())  # noqa: E731
    for hook in ("use_stream", "set_current_stream", "native_handle"):
        yield Fault(hook, "", sentence(hook), partial(faulty, {hook: given}))
    yield Fault("current_stream", "", sentence("current_stream"), partial(faulty, {"current_stream": found}))

    def replay(honest: Method) -> Method:
        def method(self: Any) -> None:
            before = machine().current_stream(self._device.index)
            machine().set_stream(of(before))
            try:
                honest(self)
            finally:
                machine().set_stream(before)

        return method

    told = "DeviceGraph.replay: Run the captured work on the current stream."
    yield Fault("create_graph", "replay", told, partial(changed_handles, "create_graph", "replay", replay))


@operator("process")
def the_parents_numbers_are_told() -> Iterator[Fault]:
    """In a child that was forked after the device was used, what its parent has is told."""

    def as_the_parent(deep: bool, call: Call) -> object:
        owner = machine().owner
        if not machine().in_bad_fork() or (deep and os.getppid() == owner):
            return call.forward()
        machine()._owner = os.getpid()
        try:
            return call.forward()
        finally:
            machine()._owner = owner

    for hook in HOOKS:
        if frozen_contract.hook(hook).sees_no_parent:
            for variant, deep in (("children", False), ("grandchildren", True)):
                make = partial(faulty, {hook: partial(as_the_parent, deep)})
                yield Fault(hook, variant, sentence(hook), make)


@operator("process")
def a_process_goes_by_anothers_number() -> Iterator[Fault]:
    """Memory of this process is listed under the number of another: of who made the backend, or of its kin."""

    def constructed(self: Any) -> None:
        self.born = os.getpid()

    def listed(number: Callable[[Any], int], call: Call) -> object:
        found: Any = call.forward()
        own = os.getpid()
        return [
            dataclasses.replace(one, pid=number(call.backend) if one.pid == own else one.pid)
            for one in found or ()
        ]

    numbers: dict[str, Callable[[Any], int]] = {
        "born": lambda backend: backend.born,
        "parent": lambda backend: os.getppid(),
        "group": lambda backend: os.getpgid(0),
        "session": lambda backend: os.getsid(0),
    }
    for name, number in numbers.items():
        make = partial(faulty, {"process_memory": partial(listed, number)}, __init__=constructed)
        yield Fault("process_memory", name, sentence("process_memory"), make)


@operator("side effect")
def asking_for_nothing_initialises() -> Iterator[Fault]:
    """A hook initialises the device where there is nothing to do, or where it raises."""

    def stopping(call: Call) -> object:
        _initialise()
        return call.forward()

    def refusing(call: Call) -> object:
        given = call.arguments[0]
        if not isinstance(given, torch.Tensor) and given not in range(machine().config.device_count):
            _initialise()
        return call.forward()

    for hook, spec in HOOKS.items():
        if not frozen_contract.hook(hook).quiet:
            continue
        if "enabled" in spec.parameters:
            yield Fault(hook, "stop", spec.doc, partial(faulty, {hook: stopping}))
        if frozen_contract.hook(hook).refuses or hook == "is_pinned":
            yield Fault(hook, "refused", spec.doc, partial(faulty, {hook: refusing}))


def _initialise() -> None:
    if not machine().in_bad_fork():
        machine().initialize()
