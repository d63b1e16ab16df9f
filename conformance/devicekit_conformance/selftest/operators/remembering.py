"""What a backend remembers, forgets and keeps between calls: of settings, of others, of what it was given."""

from __future__ import annotations

import dataclasses
import os
import threading
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch

from devicekit.testing.streams import SimEvent
from devicekit_conformance.selftest.building import Body, Call, faulty, neutral
from devicekit_conformance.selftest.honest import machine
from devicekit_conformance.selftest.operators import Fault, operator, sentence
from devicekit_conformance.selftest.operators.handles import Method, changed_handles

_POLLED = 16  # times
_NO_WAIT = "Event.query: Whether all work before the mark has finished. Does not wait."


def _faults(bodies: dict[str, Body], variant: str = "") -> Iterator[Fault]:
    for hook, body in bodies.items():
        yield Fault(hook, variant, sentence(hook), partial(faulty, {hook: body}))


@operator("call")
def what_is_first_seen_stays() -> Iterator[Fault]:
    """What was current when a hook was called first is its answer for good."""

    def default_stream(call: Call) -> object:
        (index,) = call.arguments
        return call.memory.setdefault(str(index), machine().current_stream(index))

    yield from _faults({"default_stream": default_stream})


@operator("call")
def a_call_undoes_a_limit() -> Iterator[Fault]:
    """After a call of another hook, the limit of set_memory_fraction() is gone."""

    def body(call: Call) -> object:
        found = call.forward()
        for device in machine().devices if machine().initialized else ():
            device.allocator.limit = machine().config.capacity
        return found

    hooks = ("record_memory_history", "memory_stats", "empty_cache", "synchronize", "memory_info")
    yield from _faults(dict.fromkeys(hooks, body))


@operator("process")
def grandchildren_are_told_otherwise() -> Iterator[Fault]:
    """In a child of a child that was forked after the device was used, a hook answers as if all were well."""

    def body(hook: str, call: Call) -> object:
        deep = machine().in_bad_fork() and os.getppid() != machine().owner
        return neutral(hook) if deep else call.forward()

    hooks = ("is_bad_fork", "memory_stats", "memory_snapshot")
    yield from _faults({hook: partial(body, hook) for hook in hooks})


@operator("value")
def an_argument_is_narrowed() -> Iterator[Fault]:
    """A number that a hook is given is cut to so many bits, with a sign."""

    def body(bits: int, call: Call) -> object:
        index, number = call.arguments
        half = 1 << (bits - 1)
        return call.honest(index, (number + half) % (2 * half) - half)

    for bits in (8, 16, 32):
        yield from _faults({"create_stream": partial(body, bits)}, f"to_{bits}_bits")
    yield from _faults({"manual_seed": partial(body, 16)}, "to_16_bits")


@operator("value")
def others_are_not_counted() -> Iterator[Fault]:
    """What other processes hold is free, or is none of what a part is taken of."""

    def memory_info(call: Call) -> object:
        found: Any = call.forward()
        device = machine().device(call.arguments[0])
        return dataclasses.replace(found, free=found.total - device.memory.held_by(device._holder))

    def set_memory_fraction(call: Call) -> None:
        call.forward()
        index, fraction = call.arguments
        device = machine().device(index)
        device.allocator.limit = int((device.memory.free + device.memory.held_by(device._holder)) * fraction)

    yield from _faults({"memory_info": memory_info, "set_memory_fraction": set_memory_fraction})


@operator("value")
def an_entry_is_listed_twice() -> Iterator[Fault]:
    """A list has its first entry twice."""

    def body(call: Call) -> object:
        found: Any = call.forward()
        return [*found, *found[:1]] if found else found

    yield from _faults(dict.fromkeys(("process_memory", "allocator_settings", "memory_snapshot"), body))


@operator("value")
def a_pointer_is_negative() -> Iterator[Fault]:
    """The value of a pointer is taken for a number with a sign."""
    yield from _faults({"native_handle": lambda call: call.forward() - (1 << 63)})


@operator("meaning")
def a_dtype_is_not_listed() -> Iterator[Fault]:
    """A dtype in which the device multiplies is not listed."""
    for dtype in (torch.float16, torch.bfloat16, torch.float64):
        gone = partial(lambda dtype, call: call.forward() - {dtype}, dtype)
        yield from _faults({"supported_dtypes": gone}, str(dtype).rpartition(".")[2])


@operator("leak")
def what_is_given_is_kept() -> Iterator[Fault]:
    """A hook keeps what it was given."""

    def body(call: Call) -> object:
        call.memory.setdefault("kept", []).extend(call.arguments)
        return call.forward()

    yield from _faults(dict.fromkeys(("unregister_host_memory", "set_rng_state", "classify_error"), body))


@operator("thread")
def a_thread_sees_old_settings() -> Iterator[Fault]:
    """A thread that looked before another one changed a setting is told of the old one."""
    seen = threading.local()

    def look(call: Call) -> object:
        return list(seen.__dict__.setdefault("settings", call.forward()))

    def change(call: Call) -> None:
        call.forward()
        seen.__dict__.pop("settings", None)

    bodies: dict[str, Body] = {"allocator_settings": look, "set_allocator_setting": change}
    hook = "set_allocator_setting"
    yield Fault(hook, "", sentence("allocator_settings"), partial(faulty, bodies))


@operator("index")
def other_devices_streams_are_forgotten() -> Iterator[Fault]:
    """Setting a stream on one device puts the others back on their default streams."""

    def body(call: Call) -> None:
        call.forward()
        streams = machine()._thread.streams
        for index in [one for one in streams if one != call.arguments[0].device_index]:
            del streams[index]

    yield from _faults({"set_current_stream": body})


@operator("handle")
def an_event_waits_when_polled() -> Iterator[Fault]:
    """Asked often, an event waits."""

    def change(honest: Method) -> Method:
        polls: dict[int, int] = {}

        def query(self: Any) -> object:
            polls[id(self)] = polls.get(id(self), 0) + 1
            if polls[id(self)] % (_POLLED + 1) == _POLLED:
                self.synchronize()
            return honest(self)

        return query

    yield Fault("create_event", "query", _NO_WAIT, partial(changed_handles, "create_event", "query", change))


@operator("handle")
def an_event_is_recorded_once() -> Iterator[Fault]:
    """While its mark is pending, an event is not recorded again."""

    def change(honest: Method) -> Method:
        def record(self: Any, *arguments: object) -> None:
            if self.query():
                honest(self, *arguments)

        return record

    told = "Event.record: Mark the current end of the stream."
    yield Fault("create_event", "record", told, partial(changed_handles, "create_event", "record", change))


@operator("handle")
def an_event_has_a_past() -> Iterator[Fault]:
    """A new event is one that was dropped, with its mark."""
    free: list[tuple[Any, ...]] = []

    class Used(SimEvent):
        def __del__(self) -> None:
            if self._stream is not None:
                free.append((self._stream, self._time, self._through))

    def body(call: Call) -> object:
        made: Any = call.forward()
        made.__class__ = Used
        if free:
            made._stream, made._time, made._through = free.pop()
        return made

    yield from _faults({"create_event": body})
