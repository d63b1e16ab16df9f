"""DK-STREAM: streams, events and graphs order work, and say truly whether it is done."""

from __future__ import annotations

from typing import TYPE_CHECKING, cast

from devicekit_conformance.context import Context, Failure, NotApplicable, NotRun, expect
from devicekit_conformance.measures import BLOCK, filled, intact
from devicekit_conformance.rulebook import requirement
from devicekit_conformance.whereabouts import held_up

if TYPE_CHECKING:
    from devicekit.contract.handles import DeviceGraph, Event, Stream
    from devicekit_conformance.probe import Token

_STREAMS = ("current_stream", "create_stream", "use_stream")


def _stream(ctx: Context) -> Stream:
    return cast("Stream", ctx.hook("create_stream")(0, 0))


def _event(ctx: Context, timing: bool = False) -> Event:
    return cast("Event", ctx.hook("create_event")(0, timing))


def _long_work(ctx: Context, stream: object | None) -> Token:
    """More work than `_work`, so that what waits for it cannot be done first by having less to do."""
    for _ in range(3):
        _work(ctx, stream)
    return _work(ctx, stream)


def _work(ctx: Context, stream: object | None) -> Token:
    token = ctx.probe.submit(0, stream)
    if token is None:
        raise NotRun("the probe cannot submit work that it can ask about")
    return token


@requirement(
    "DK-STREAM-001", profile="streams", capabilities=["streams"], hooks=_STREAMS, after=["DK-ORDER-001"]
)
def a_stream_is_current_inside_its_block(ctx: Context) -> None:
    """use_stream() MUST make the stream current, and the previous one again on every exit, by exception too."""
    before = ctx.result("current_stream", 0)
    stream = _stream(ctx)
    use = ctx.hook("use_stream")
    try:
        with use(stream):  # type: ignore[attr-defined]
            expect(ctx.hook("current_stream")(0) == stream, "inside the block, another stream is current")
            raise _Deliberate
    except _Deliberate:
        pass
    after = ctx.hook("current_stream")(0)
    expect(after == before, "after an exception in the block, the previous stream is not current again")


class _Deliberate(Exception):
    pass


@requirement("DK-STREAM-002", profile="streams", capabilities=["streams"], after=["DK-STREAM-001"])
def streams_have_the_contracts_methods(ctx: Context) -> None:
    """A stream MUST have query, synchronize, wait_event and wait_stream."""
    stream = _stream(ctx)
    absent = [
        name for name in ("query", "synchronize", "wait_event", "wait_stream") if not hasattr(stream, name)
    ]
    expect(not absent, f"{type(stream).__name__} has no {', '.join(absent)}")


@requirement("DK-STREAM-003", profile="streams", capabilities=["streams"], after=["DK-STREAM-002"])
def priorities_are_clamped(ctx: Context) -> None:
    """create_stream() MUST accept any priority, clamping what the device does not have."""
    for priority in (-100, -1, 0, 1, 100, -(1 << 40), 1 << 40):
        ctx.hook("create_stream")(0, priority)


@requirement(
    "DK-STREAM-004", profile="streams", capabilities=["streams"], after=["DK-STREAM-002"], unwaivable=True
)
def a_stream_is_done_when_its_work_is(ctx: Context) -> None:
    """A stream's query() MUST NOT be True, and its synchronize() MUST NOT return, before its work is done."""
    stream = _stream(ctx)
    token = _work(ctx, stream)
    expect(not stream.query() or token.done(), "query() was True while work was pending")
    stream.synchronize()
    expect(token.done(), "synchronize() returned while work was pending")
    expect(stream.query() is True, "query() is not True after synchronize()")


@requirement(
    "DK-STREAM-005",
    profile="streams",
    capabilities=["streams"],
    after=["DK-STREAM-002", "DK-ORDER-002"],
    unwaivable=True,
)
def the_device_waits_for_every_stream(ctx: Context) -> None:
    """synchronize() MUST wait for work on every stream, not only the current one."""
    token = _work(ctx, _stream(ctx))
    ctx.hook("synchronize")(0)
    expect(token.done(), "work on another stream was still running after synchronize()")


@requirement(
    "DK-STREAM-006", profile="streams", capabilities=["streams"], after=["DK-STREAM-004"], unwaivable=True
)
def a_stream_waits_for_a_stream(ctx: Context) -> None:
    """wait_stream() MUST make later work wait for everything in the other stream."""
    first, second = _stream(ctx), _stream(ctx)
    token = _long_work(ctx, first)
    second.wait_stream(first)
    _work(ctx, second)
    second.synchronize()
    expect(token.done(), "work that waited for another stream's work was done before it")


@requirement(
    "DK-STREAM-007",
    profile="streams",
    capabilities=["streams", "events"],
    after=["DK-STREAM-004"],
    unwaivable=True,
)
def a_stream_waits_for_an_event(ctx: Context) -> None:
    """wait_event() MUST make later work wait for the event's mark."""
    first, second = _stream(ctx), _stream(ctx)
    token, event = _long_work(ctx, first), _event(ctx)
    event.record(first)
    second.wait_event(event)
    _work(ctx, second)
    second.synchronize()
    expect(token.done(), "work that waited for an event was done before what the event marks")


@requirement(
    "DK-STREAM-008", profile="streams", capabilities=["events"], after=["DK-ORDER-002"], unwaivable=True
)
def an_event_is_reached_when_its_work_is_done(ctx: Context) -> None:
    """An event's query() MUST NOT be True, and its synchronize() MUST NOT return, before the mark is reached."""
    token, event = _work(ctx, None), _event(ctx)
    event.record()
    expect(not event.query() or token.done(), "query() was True while the marked work was pending")
    event.synchronize()
    expect(token.done(), "synchronize() returned while the marked work was pending")
    expect(event.query() is True, "query() is not True after synchronize()")


@requirement("DK-STREAM-009", profile="streams", capabilities=["events"], after=["DK-STREAM-008"])
def timed_events_measure_milliseconds(ctx: Context) -> None:
    """Timed events MUST measure the time between them as a float in milliseconds that is not negative."""
    start, end = _event(ctx, timing=True), _event(ctx, timing=True)
    start.record()
    _work(ctx, None)
    end.record()
    end.synchronize()
    elapsed = start.elapsed_time(end)  # type: ignore[attr-defined]
    expect(type(elapsed) is float, f"it is {elapsed!r}, no float")
    expect(elapsed >= 0, f"it is {elapsed}")


@requirement("DK-STREAM-010", profile="streams", isolated=60.0, device=False)
def asking_for_capture_is_always_legal(ctx: Context) -> None:
    """is_capturing() MUST NOT raise before the device is used, and is False there."""
    asked = ctx.hook("is_capturing")
    if ctx.device_count == 0:
        raise NotApplicable("there is no device on this machine")
    found = asked(0)
    expect(found is False, f"it is {found!r}")


@requirement("DK-STREAM-011", profile="streams", capabilities=["graphs"], after=["DK-ORDER-002"])
def a_graph_replays_what_was_captured(ctx: Context) -> None:
    """A graph MUST run captured work on replay() and not during capture(), which is_capturing() tells."""
    source, target = filled(ctx, 4096, 1), filled(ctx, 4096, 0)
    graph = cast("DeviceGraph", ctx.hook("create_graph")(0))
    with graph.capture():
        expect(ctx.hook("is_capturing")(0) is True, "is_capturing() is not True inside capture()")
        target.copy_(source)
    expect(ctx.hook("is_capturing")(0) is False, "is_capturing() is not False after capture()")
    ctx.hook("synchronize")(0)
    expect(intact(target, 0), "captured work ran during capture()")
    for value in (2, 3):
        source.fill_(value)
        graph.replay()
        ctx.hook("synchronize")(0)
        expect(intact(target, value), f"after replay(), the target does not hold {value}")
    graph.reset()


@requirement(
    "DK-STREAM-012",
    profile="streams",
    hooks=["empty_cache"],
    capabilities=["graphs"],
    after=["DK-STREAM-011"],
)
def a_graph_survives_an_emptied_cache(ctx: Context) -> None:
    """empty_cache() MUST leave captured graphs able to replay."""
    source, target = filled(ctx, 4096, 1), filled(ctx, 4096, 0)
    graph = cast("DeviceGraph", ctx.hook("create_graph")(0))
    with graph.capture():
        target.copy_(source + 1)
    ctx.hook("empty_cache")()
    graph.replay()
    ctx.hook("synchronize")(0)
    expect(intact(target, 2), "after empty_cache(), a graph replays something else")


@requirement("DK-STREAM-013", profile="streams", capabilities=["memory_pools"], after=["DK-ORDER-001"])
def a_pool_serves_its_block(ctx: Context) -> None:
    """Memory from a pool MUST stay valid after the pool's block is left."""
    pool = ctx.hook("memory_pool")(0)
    with pool.use():  # type: ignore[attr-defined]
        block = filled(ctx, BLOCK, 8)
    other = filled(ctx, BLOCK, 9)
    ctx.hook("synchronize")(0)
    expect(intact(block, 8), "a block from the pool holds other data after it was left")
    del other


@requirement("DK-STREAM-014", profile="streams", capabilities=["streams"], after=["DK-STREAM-004"])
def a_foreign_thread_may_wait(ctx: Context) -> None:
    """A stream MUST be usable from a thread other than the one that made it."""
    import threading

    stream, failures = _stream(ctx), list[str]()

    def wait() -> None:
        try:
            stream.synchronize()
        except Exception as error:
            failures.append(f"{type(error).__name__}: {error}")

    thread = threading.Thread(target=wait, daemon=True)
    thread.start()
    late = held_up(thread)
    if late:
        raise Failure(f"synchronize() in another thread {late}")
    expect(not failures, failures[0] if failures else "")
