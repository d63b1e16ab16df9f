"""What the ordering hooks do that came after contract 1.0: streams set for good, their handles and priorities."""

from __future__ import annotations

import gc
from typing import Any

from devicekit_conformance.crossing import Elsewhere
from devicekit_conformance.effects import effect
from devicekit_conformance.effects.marks import is_done_when_its_work_is
from devicekit_conformance.trial import Trial
from devicekit_conformance.varieties import of_every_kind, waits_for_any

# By these names torch's own streams of several vendors give the pointer that their libraries take.
_MANY = 28  # streams, with those before them no more than each of which is another one
_POINTERS = ("cuda_stream", "npu_stream", "musa_stream", "sycl_queue")


@effect("set_current_stream")
def set_current_stream(trial: Trial) -> None:
    stream = trial.new_stream()
    before = trial.own("current_stream", trial.index)
    if stream is None or before is None:
        return
    try:
        _stays(trial)
        _joins_nothing(trial, before)
        for name, one in of_every_kind(trial) if not trial.situation else ():
            trial.call(one)
            now = trial.own("current_stream", trial.index)
            trial.expect(now == one, f"the current stream is {now!r}, and {name} was set, {one!r}")
        trial.call(stream)
        found = trial.own("current_stream", trial.index)
        trial.expect(found == stream, f"the current stream is {found!r}, and {stream!r} was set")
        elsewhere = trial.in_a_thread(lambda: trial.own("current_stream", trial.index))
        trial.expect(elsewhere != stream, "what one thread set is current in another")
        if trial.has("current_stream"):
            elsewhere = trial.in_a_thread(lambda: trial.other("current_stream", trial.index))
            trial.expect(elsewhere != stream, "current_stream() says in another thread what this one set")
        for index in trial.others:
            theirs = trial.own("current_stream", index)
            trial.expect(theirs != stream, f"a stream of device {trial.index} is current on device {index}")
        token = trial.work()
        stream.synchronize()
        trial.expect(token is None or token.done(), "work that was submitted after it is not on the stream")
        trial.call(before)
        found = trial.own("current_stream", trial.index)
        trial.expect(found == before, "the stream before it cannot be made current again")
    finally:
        trial.own("set_stream", before)


def _joins_nothing(trial: Trial, before: Any) -> None:
    """Work on the new stream does not stand behind that of the one before."""
    if not hasattr(trial.ctx.probe, "now"):
        return  # where time is the host's, work may end by itself
    stream: Any = trial.new_stream()
    trial.call(before)
    token = trial.long_work(before)
    pending = None if token is None or token.done() else token
    trial.call(stream)
    trial.work(stream)
    stream.synchronize()
    waited = pending is not None and pending.done()
    trial.expect(not waited, "work on the stream that was set waited for the stream before it")
    trial.call(before)
    trial.finish()


def _stays(trial: Trial) -> None:
    """A stream stays current, though whoever set it has let go of it."""
    default = trial.in_a_thread(lambda: trial.own("current_stream", trial.index))
    trial.ctx.raw_hook(trial.hook)(trial.new_stream(trial.index))
    gc.collect()
    found = trial.own("current_stream", trial.index)
    trial.expect(found != default, "the stream that was set is not current once nobody else holds it")


@effect("default_stream")
def default_stream(trial: Trial) -> None:
    found = trial.call(trial.index)
    fresh = trial.in_a_thread(lambda: trial.own("current_stream", trial.index))
    trial.expect(fresh is None or found == fresh, f"it is {found!r}, and a new thread begins on {fresh!r}")
    own = trial.own("default_stream", trial.index)
    trial.expect(own is None or found == own, f"it is {found!r}, and torch's own is {own!r}")
    for index in trial.others:
        theirs = trial.ctx.raw_hook(trial.hook)(index)
        trial.expect(found != theirs and theirs != found, f"it is equal to that of device {index}")
    side = trial.new_stream()
    if side is None:
        return
    with trial.on(side):
        trial.expect(trial.call(trial.index) == found, "it is another one while a stream is current")
        trial.expect(found != side, "it is the current stream")
    if not trial.situation:
        for asked in (found, Elsewhere(found), found):
            is_done_when_its_work_is(trial, found, asked)
        waits_for_any(trial, [("the stream that it returned", found)])


@effect("native_handle")
def native_handle(trial: Trial) -> None:
    first, second = trial.new_stream(), trial.new_stream()
    if first is None or second is None:
        return
    found = trial.call(first)
    pointer = type(found) is int and 0 <= found < 1 << 64
    trial.expect(pointer, f"it is {found!r}, no value that a pointer can have")
    trial.expect(found != trial.call(second), "two streams have one handle")
    with trial.on(second):
        trial.equal(trial.call(first), found, "with another stream current, the handle of a stream")
    with trial.on(first):
        trial.equal(trial.call(first), found, "while it is current, the handle of a stream")
    there = trial.in_a_thread(lambda: trial.call(first))
    trial.equal(there, found, "in another thread, the handle of a stream")
    for name in _POINTERS:
        own = getattr(first, name, None)
        if isinstance(own, int):
            trial.equal(found, own, f"the handle, by torch's own {name},")
    seen = {found: first}
    urgent = trial.has("create_stream")
    streams = [trial.other("create_stream", trial.index, one) for one in (-1, 1, -1) if urgent]
    streams += [trial.new_stream(index) for index in range(trial.count)]
    streams += [trial.new_stream() for _ in range(_MANY if not trial.situation else 0)]
    for stream in streams:
        handle = trial.ctx.raw_hook(trial.hook)(stream)
        pointer = type(handle) is int and 0 <= handle < 1 << 64
        trial.expect(pointer, f"it is {handle!r}, no value that a pointer can have")
        again = handle in seen and seen[handle] == stream  # there may be no more streams
        told = "a stream has the handle of another stream"
        trial.expect(handle not in seen or again, told)
        seen[handle] = stream
    current = trial.own("current_stream", trial.index)
    if current is not None:
        handle = trial.ctx.raw_hook(trial.hook)(current)
        there = handle in seen and seen[handle] != current
        trial.expect(not there, "the current stream has the handle of another one")


@effect("priority_range")
def priority_range(trial: Trial) -> None:
    found = trial.call(trial.index)
    trial.equal(trial.call(trial.index), found, "the second answer")
    if found is None:
        return
    pair = len(found) == 2 and all(type(one) is int for one in found)
    trial.expect(pair, f"it is {found!r}, no two ints")
    lowest, highest = found
    trial.expect(
        highest <= 0 <= lowest, f"it is {found!r}: the lowest comes first, and 0, the default, is within"
    )
    own = getattr(getattr(trial.runtime, "Stream", None), "priority_range", None)
    if callable(own):
        trial.equal(found, tuple(own()), "the range, by torch's own,")
    if trial.has("create_stream"):
        _clamped(trial, lowest, highest)


def _clamped(trial: Trial, lowest: int, highest: int) -> None:
    for asked, wanted in ((lowest, lowest), (highest, highest), (lowest + 3, lowest), (highest - 3, highest)):
        stream: Any = trial.other("create_stream", trial.index, asked)
        told = getattr(stream, "priority", None)
        if type(told) is int:
            trial.equal(told, wanted, f"the priority of a stream that was asked for with {asked}")


@effect("submit_work")
def submit_work(trial: Trial) -> None:
    token = trial.long_work()
    pending = token is not None and not token.done()
    trial.call(trial.index)
    trial.call(trial.index)
    if token is not None and pending:
        trial.expect(not token.done(), "it waited for the work")
