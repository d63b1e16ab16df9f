"""More of streams and events: again, across devices, on unmarked events, and with another device current."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from typing import Any

from devicekit_conformance.trial import Trial

__all__ = [
    "after", "asked", "every_wait_counts", "is_done_when_its_work_is", "keep_their_mark",
    "leave_what_is_current", "new_event", "unmarked",
]  # fmt: skip

_TIMES = 3  # a wait counts each time that it is asked for


def every_wait_counts(trial: Trial, stream: Any, sources: list[Any]) -> None:
    """Again and again, and for streams of other devices, work after a wait comes after what it waited for."""
    for source in sources:
        place = getattr(source, "device_index", trial.index)
        for number in range(_TIMES):
            trial.finish()
            token = trial.long_work(source, place)
            stream.wait_stream(source)
            mark = trial.work(stream)
            stream.synchronize()
            early = token is not None and mark is not None and mark.done() and not token.done()
            told = f"after wait_stream() of a stream of device {place} for the {number + 1}. time"
            trial.expect(not early, f"{told}, work was done before what it waited for")
    trial.finish()


def unmarked(trial: Trial, stream: Any, event: Any) -> None:
    """An event that nobody recorded counts as reached: who waits for it, waits for nothing."""
    trial.finish()
    waits: dict[str, Callable[[], object]] = {
        "wait_event()": lambda: stream.wait_event(event),
        "wait()": lambda: event.wait(stream),
        "synchronize()": event.synchronize,
    }
    for name, wait in waits.items():
        try:
            wait()
        except Exception as error:
            trial.fail(
                f"{name} of an event that nobody recorded raised {type(error).__name__}: {str(error)[:120]}"
            )
    token = trial.work(stream)
    stream.synchronize()
    trial.expect(token is None or token.done(), "a stream that waits for an unmarked event does no work")


def keep_their_mark(trial: Trial, make: Callable[[], Any], source: Any, waiting: Any, idle: Any) -> None:
    """What waits for a mark still does when the event is recorded again, where nothing is to be waited for."""
    for late in (False, True):  # with work behind the wait by then, and without
        trial.finish()
        event, token = make(), trial.long_work(source)
        event.record(source)
        event.wait(waiting)
        mark = trial.work(waiting) if late else None
        event.record(idle)
        mark = trial.work(waiting) if mark is None else mark
        waiting.synchronize()
        early = token is not None and mark is not None and mark.done() and not token.done()
        trial.expect(not early, "once an event was recorded again, what waited for its mark no longer does")
    trial.finish()


def leave_what_is_current(trial: Trial, handle: Any, calls: dict[str, Callable[[], object]]) -> None:
    """Methods of what a hook made change neither device nor streams, whichever device is current."""
    for index in range(min(trial.count, 2)):
        with trial.current(index):
            before = _current(trial)
            for name, call in calls.items():
                with contextlib.suppress(Exception):  # another device may be refused here
                    call()
                after = _current(trial)
                told = f"{name}() of a {type(handle).__name__} left {after} current, and {before} was"
                trial.expect(after == before, told)


def _current(trial: Trial) -> str:
    streams = [trial.own("current_stream", index) for index in range(min(trial.count, 2))]
    told = [getattr(one, "stream_id", None) for one in streams]
    return f"device {trial.ctx.probe.current_index()} and streams {told}"


_AT_ONCE = 0.1  # seconds: what takes longer has waited


_POLLS = 120  # of work that is pending


def after(trial: Trial, token: Any, mark: Any, what: str) -> None:
    if token is not None and mark is not None and mark.done():
        trial.expect(token.done(), f"work after {what} was done before what it waited for")


def asked(trial: Trial, token: Any, handle: Any) -> object:
    """What query() says, which must not be what it waited for."""
    pending, began = not token.done(), time.perf_counter()
    said: object = handle.query()
    own_time = hasattr(trial.ctx.probe, "now")
    for _ in range(_POLLS):  # who polls does not wait either
        if own_time or time.perf_counter() - began < _AT_ONCE / 4:
            handle.query()
    # A probe with a clock of its own has no other reason for work to end meanwhile.
    waited = hasattr(trial.ctx.probe, "now") or said is not True or time.perf_counter() - began > _AT_ONCE
    if pending and waited:
        trial.expect(not token.done(), "query() waited for the work")
    return said


def is_done_when_its_work_is(trial: Trial, queue: Any, stream: Any) -> None:
    """Work on ``queue`` is what ``stream``, the same one, waits for."""
    for _ in range(2):
        trial.finish()
        trial.expect(stream.query() is True, "a stream without work says that it is not done")
        token = trial.long_work(queue)
        if token is None:
            return
        said = asked(trial, token, stream)
        trial.expect(said is not True or token.done(), "query() was True while work was pending")
        returned = stream.synchronize()
        trial.expect(returned is None, f"the stream's synchronize() returned {returned!r}")
        trial.expect(token.done(), "the stream's synchronize() returned while work was pending")
        trial.expect(stream.query() is True, "query() is not True after synchronize()")


def new_event(trial: Trial) -> Any:
    kind = getattr(trial.runtime, "Event", None)
    if kind is not None:
        try:
            return kind()
        except Exception:
            return None
    return trial.other("create_event", trial.index, False) if trial.has("create_event") else None
