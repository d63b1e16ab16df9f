"""DK-CONTROL: what contract 1.1 added: streams for good, shared pools, dtypes, host memory, settings, telemetry.

Each is judged where the backend has it. A plugin for contract 1.0 has none of it, and nothing here applies.
"""

from __future__ import annotations

import threading
import time
from typing import TYPE_CHECKING, cast

from devicekit_conformance.context import Context, Failure, NotApplicable, expect
from devicekit_conformance.measures import filled, intact
from devicekit_conformance.pages import NUMBERS, on_own_pages
from devicekit_conformance.rulebook import requirement
from devicekit_conformance.whereabouts import held_up

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    import torch

    from devicekit.contract.handles import DeviceGraph, Stream
    from devicekit.contract.records import AllocatorSetting, Telemetry


_PATIENCE = 10.0  # seconds


def _needs(ctx: Context, *hooks: str) -> None:
    absent = [hook for hook in hooks if not ctx.has(hook)]
    if absent:
        raise NotApplicable(f"the backend does not implement {', '.join(absent)}")


def _in_new_thread(ctx: Context) -> object:
    found: list[object] = []
    thread = threading.Thread(target=lambda: found.append(ctx.hook("current_stream")(0)), daemon=True)
    thread.start()
    late = held_up(thread)
    expect(not late, f"current_stream() in another thread {late}")
    expect(bool(found), "current_stream() raised in another thread")
    return found[0]


@requirement("DK-CONTROL-001", profile="streams", after=["DK-STREAM-001"], since="1.1")
def a_stream_stays_current(ctx: Context) -> None:
    """set_current_stream() MUST make the stream current until another is set, in this thread only.

    The current device stays what it was.
    """
    _needs(ctx, "set_current_stream", "current_stream", "create_stream")
    before, device = ctx.hook("current_stream")(0), ctx.probe.current_index()
    stream = cast("Stream", ctx.hook("create_stream")(0, 0))
    ctx.hook("set_current_stream")(stream)
    try:
        expect(ctx.hook("current_stream")(0) == stream, "another stream is current after it was set")
        expect(_in_new_thread(ctx) != stream, "the stream is current in another thread too")
        expect(ctx.probe.current_index() == device, "setting a stream changed the current device")
    finally:
        ctx.hook("set_current_stream")(before)
    expect(ctx.hook("current_stream")(0) == before, "the previous stream cannot be set again")


@requirement("DK-CONTROL-002", profile="streams", after=["DK-STREAM-001"], since="1.1")
def a_thread_begins_on_the_default_stream(ctx: Context) -> None:
    """default_stream() MUST be the stream that is current in a thread that set none, the same each time."""
    _needs(ctx, "default_stream", "current_stream")
    default = ctx.hook("default_stream")(0)
    expect(default == ctx.hook("default_stream")(0), "two calls answer with different streams")
    expect(_in_new_thread(ctx) == default, "another stream is current in a new thread")


@requirement("DK-CONTROL-003", profile="streams", after=["DK-STREAM-001"], since="1.1")
def a_native_handle_is_one_streams(ctx: Context) -> None:
    """native_handle() MUST be an int, the same for one stream each time and another for another stream."""
    _needs(ctx, "native_handle", "create_stream")
    handle = ctx.hook("native_handle")
    first, second = (ctx.hook("create_stream")(0, 0) for _ in range(2))
    found = handle(first)
    expect(type(found) is int, f"it is {found!r}")
    expect(found == handle(first), "one stream has two handles")
    expect(found != handle(second), "two streams have one handle")


@requirement("DK-CONTROL-004", profile="streams", after=["DK-STREAM-011"], since="1.1")
def captures_share_a_pool(ctx: Context) -> None:
    """Graphs whose captures share a pool MUST each replay what was captured.

    The graphs are captured one after the other, replayed in that order, and dropped one by one.
    """
    _needs(ctx, "graph_pool", "create_graph")
    if "pool" not in ctx.opened.takes("create_graph"):
        raise NotApplicable("create_graph() takes no pool")
    pool = ctx.hook("graph_pool")(0)
    source = filled(ctx, 4096, 1)
    targets, graphs = [], []
    for step in (1, 2):
        target = filled(ctx, 4096, 0)
        graph = cast("DeviceGraph", ctx.hook("create_graph")(0, pool))
        with graph.capture():
            target.copy_(source + step)
        targets.append(target)
        graphs.append(graph)
    for value in (5, 9):
        source.fill_(value)
        for step, (graph, target) in enumerate(zip(graphs, targets, strict=True), 1):
            graph.replay()
            ctx.hook("synchronize")(0)
            expect(intact(target, value + step), f"graph {step} of 2 replays something else")
    graphs.pop(0).reset()
    source.fill_(20)
    graphs[0].replay()
    ctx.hook("synchronize")(0)
    expect(intact(targets[1], 22), "a graph replays something else once another of its pool was dropped")


@requirement("DK-CONTROL-005", profile="core", after=["DK-ORDER-001"], since="1.1")
def supported_dtypes_multiply(ctx: Context) -> None:
    """In every dtype of supported_dtypes() the device MUST multiply matrices, and right.

    8-bit floats and integers, for which torch has no plain product, are only held and read back.
    """
    import torch

    _needs(ctx, "supported_dtypes")
    found = ctx.hook("supported_dtypes")(0)
    expect(found is None or isinstance(found, frozenset), f"it is {found!r}")
    where = ctx.device().torch_device
    for dtype in sorted(cast("frozenset[torch.dtype] | None", found) or (), key=str):
        plain = dtype.is_floating_point and dtype.itemsize > 1
        try:
            ones = torch.ones(16, 16).to(dtype).to(where)
            result = (ones @ ones if plain else ones).cpu().float()
        except Exception as error:
            raise Failure(f"in {dtype} it raised {type(error).__name__}: {error}") from error
        right = bool((result == (16.0 if plain else 1.0)).all())
        expect(right, f"in {dtype} the result is wrong")


@requirement("DK-CONTROL-006", profile="host", since="1.1")
def pinned_is_told_from_pageable(ctx: Context) -> None:
    """is_pinned() MUST be False for plain host memory, and True while it is page-locked."""
    import torch

    _needs(ctx, "is_pinned")
    plain = on_own_pages()
    asked = ctx.hook("is_pinned")
    expect(asked(plain) is False, "plain host memory is called pinned")
    if ctx.has("pin_memory"):
        expect(asked(ctx.hook("pin_memory")(plain)) is True, "a pinned copy is not called pinned")
    if ctx.has("register_host_memory") and ctx.has("unregister_host_memory"):
        ctx.hook("register_host_memory")(plain)
        try:
            expect(asked(plain) is True, "registered memory is not called pinned")
        finally:
            ctx.hook("unregister_host_memory")(plain)
        expect(asked(plain) is False, "memory is called pinned after it was unregistered")
        expect(torch.equal(plain, torch.arange(NUMBERS)), "registering changed what the memory holds")


@requirement("DK-CONTROL-007", profile="memory", since="1.1")
def allocator_settings_are_what_was_set(ctx: Context) -> None:
    """A setting that is called changeable MUST take the value that is set, and the others MUST keep theirs.

    One that is not changeable is refused by ValueError.
    """
    _needs(ctx, "allocator_settings", "set_allocator_setting")
    read, change = ctx.hook("allocator_settings"), ctx.raw_hook("set_allocator_setting")
    before = cast("Sequence[AllocatorSetting] | None", read())
    for one in before or ():
        if one.changeable is True and one.value.isdigit():
            wanted = _changed(change, one.name, one.value)
            now = {other.name: other.value for other in cast("Sequence[AllocatorSetting]", read())}
            change(one.name, one.value)
            expected = {other.name: other.value for other in before or ()}
            expected[one.name] = wanted
            expect(now == expected, f"after {one.name} was set, the settings are {now}")
        elif one.changeable is False:
            try:
                change(one.name, one.value)
            except ValueError:
                continue
            expect(False, f"{one.name} is fixed, and setting it raised nothing")


def _changed(change: Callable[..., object], name: str, value: str) -> str:
    """Set another value, or the present one where the setting's own bounds allow no other that is tried."""
    for other in (str(int(value) * 2), str(int(value) // 2)):
        try:
            change(name, other)
        except ValueError:
            continue
        return other
    change(name, value)
    return value


@requirement("DK-CONTROL-008", profile="core", isolated=60.0, since="1.1")
def telemetry_only_looks(ctx: Context) -> None:
    """telemetry() MUST answer in °C, watts, shares of 1 and hertz, and initialise nothing."""
    _needs(ctx, "telemetry")
    before = ctx.probe.initialised()
    found = cast("Telemetry", ctx.hook("telemetry")(0))
    expect(ctx.probe.initialised() == before, "reading it initialised the device")
    for name, low, high in (
        ("temperature", -50.0, 150.0),
        ("power", 0.0, 5000.0),
        ("utilisation", 0.0, 1.0),
        ("clock", 1e7, 1e10),
        ("memory_clock", 1e7, 1e10),
    ):
        value = getattr(found, name)
        expect(value is None or low <= value <= high, f"{name} is {value!r}: the unit is another")


@requirement("DK-CONTROL-009", profile="core", after=["DK-ORDER-001"], since="1.1")
def peers_are_who_they_say(ctx: Context) -> None:
    """can_access_peer() MUST say of two devices what the runtime itself says.

    Where it is True, what is copied from one to the other arrives. Of a device and itself it may say either.
    """
    import torch

    _needs(ctx, "can_access_peer")
    runtime = getattr(ctx.probe, "runtime", None)
    own = getattr(runtime, "can_device_access_peer", None)
    asked = ctx.hook("can_access_peer")
    for index in range(ctx.device_count):
        for peer in set(range(ctx.device_count)) - {index}:
            found = asked(index, peer)
            expect(type(found) is bool, f"of {index} and {peer} it is {found!r}")
            if callable(own):
                expect(
                    found == bool(own(index, peer)),
                    f"of {index} and {peer} it is {found}, and torch says not",
                )
            if found:
                there = ctx.probe.tensor(4096, peer).fill_(7)
                here = ctx.probe.tensor(4096, index).copy_(there)
                ctx.hook("synchronize")(index)
                arrived = torch.equal(here.cpu(), torch.full((4096,), 7, dtype=torch.uint8))
                expect(arrived, f"what {index} read of the memory of {peer} is something else")


@requirement("DK-CONTROL-010", profile="streams", after=["DK-STREAM-001"], since="1.1")
def priorities_run_downwards(ctx: Context) -> None:
    """priority_range() MUST be the lowest and the highest priority, of which lower numbers run first, or None.

    0, the default, is one of them, and a stream can be made with each; a stream that tells its priority has it.
    """
    _needs(ctx, "priority_range")
    found = ctx.hook("priority_range")(0)
    if found is None:
        return
    pair = isinstance(found, tuple) and len(found) == 2 and all(type(one) is int for one in found)
    expect(pair, f"it is {found!r}")
    lowest, highest = cast("tuple[int, int]", found)
    expect(highest <= 0 <= lowest, f"it is {found!r}: the lowest comes first, and 0 is within")
    expect(ctx.hook("priority_range")(0) == found, "the second answer is another")
    if ctx.has("create_stream"):
        for priority in (lowest, highest):
            told = getattr(ctx.hook("create_stream")(0, priority), "priority", priority)
            expect(told == priority, f"a stream that was made with priority {priority} has {told}")


@requirement("DK-CONTROL-011", profile="streams", after=["DK-ORDER-001"], since="1.1")
def sending_work_off_does_not_wait(ctx: Context) -> None:
    """submit_work() MUST return while work runs. On a lazy device that work then ends though nobody waits."""
    _needs(ctx, "submit_work")
    token = ctx.probe.submit(0, None)
    if token is None or token.done():
        raise NotApplicable("work cannot be seen to run on this device")
    ctx.hook("submit_work")(0)
    expect(not token.done(), "it returned when the work had ended")
    if ctx.claims("lazy_execution"):
        deadline = time.monotonic() + _PATIENCE
        while not token.done() and time.monotonic() < deadline:
            time.sleep(0.005)
        expect(token.done(), f"the work had not ended {_PATIENCE:g} s after it was sent off")
    ctx.hook("synchronize")(0)
    expect(token.done(), "the work had not ended once it was waited for")
