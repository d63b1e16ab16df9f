"""Events: what they mark, who waits for them, and the time between them."""

from __future__ import annotations

import gc
import itertools
import time
from collections.abc import Callable
from typing import Any

from devicekit_conformance.crossing import Elsewhere
from devicekit_conformance.effects import effect
from devicekit_conformance.effects.marks import after, asked, keep_their_mark, leave_what_is_current, unmarked
from devicekit_conformance.trial import Trial
from devicekit_conformance.varieties import between_any_two, of_every_kind

_STEP = 16.0  # milliseconds: the coarsest clock that times events, which tells whole ones
_SHORT = 0.5  # milliseconds: what takes no longer is mostly the host's
_TRIES = 6


@effect("create_event")
def create_event(trial: Trial) -> None:
    with trial.current(trial.index):
        event, other = trial.call(trial.index, False), trial.call(trial.index, False)
        trial.expect(event is not other, "two events are one")
        for name in ("record", "query", "synchronize", "wait"):
            trial.expect(hasattr(event, name), f"{type(event).__name__} has no {name}")
        _drops_nothing(trial)
        side, waiting = trial.new_stream(), trial.new_stream()
        _marks(trial, trial.call(trial.index, False), None)
        if side is not None:
            marked = trial.call(trial.index, False)
            _marks(trial, marked, side)
            _marks(trial, marked, side, Elsewhere(marked))
            with trial.on(side):
                _marks(trial, trial.call(trial.index, False), None)
                _marks(trial, marked, None)  # made before the stream was current
            _orders(trial, trial.call(trial.index, False), side, waiting)
            _outlived(trial, side, waiting)
            for index in trial.others[:1]:
                _across(trial, side, trial.new_stream(index))
            if not trial.situation:
                _more_of_events(trial, side, waiting)
        _moves(trial, trial.call(trial.index, False), side)
        _is_new(trial, side)
        _measures(trial)


def _more_of_events(trial: Trial, side: Any, waiting: Any) -> None:
    def make() -> Any:
        return trial.call(trial.index, False)

    keep_their_mark(trial, make, side, waiting, trial.new_stream())
    unmarked(trial, side, make())
    marked = make()
    calls: dict[str, Callable[[], object]] = {
        "record": lambda: marked.record(side), "wait": lambda: marked.wait(waiting),
        "query": marked.query, "synchronize": marked.synchronize,
    }  # fmt: skip
    leave_what_is_current(trial, marked, calls)
    _between_streams(trial, side, waiting)
    _all_alike(trial)


def _all_alike(trial: Trial) -> None:
    """What holds of one event holds of those that are timed and those that are not, on whichever stream."""
    streams = of_every_kind(trial)
    for timing in (False, True):
        for _, stream in streams:
            _marks(trial, trial.call(trial.index, timing), stream)
        unmarked(trial, streams[-1][1], trial.call(trial.index, timing))
    flavours = itertools.cycle((False, True))

    def wait(waiting: Any, source: Any) -> None:
        event = trial.call(trial.index, next(flavours))
        event.record(source)
        event.wait(waiting)

    elsewhere = [trial.new_stream(index) for index in trial.others[:1]]
    waiting = [*streams, *(("a stream of another device", one) for one in elsewhere if one is not None)]
    between_any_two(trial, waiting, streams, "wait()", wait)


def _between_streams(trial: Trial, side: Any, waiting: Any) -> None:
    """The time between marks of two streams, the later of which waited for the first."""
    start, end = trial.call(trial.index, True), trial.call(trial.index, True)
    trial.finish()
    start.record(side)
    token = trial.work(side)
    waiting.wait_stream(side)
    trial.work(waiting)
    end.record(waiting)
    end.synchronize()
    start.synchronize()
    try:
        elapsed = start.elapsed_time(end)
    except Exception as error:
        trial.fail(
            f"elapsed_time() of marks in two streams raised {type(error).__name__}: {str(error)[:120]}"
        )
    trial.expect(
        token is None or elapsed >= 0, f"elapsed_time() is {elapsed} from a mark to one that waited for it"
    )


def _drops_nothing(trial: Trial) -> None:
    """An event that other processes are to wait for is one that can be exported, or it is refused."""
    if len(trial.ctx.opened.parameters(trial.hook)) < 3 or trial.has("export_event"):
        return
    try:
        trial.ctx.raw_hook(trial.hook)(trial.index, False, True)
    except Exception:
        return
    trial.fail("it made an event for other processes, and there is no export_event()")


def _marks(trial: Trial, recorded: Any, stream: Any, event: Any = None) -> None:
    """Recorded behind work, the event is reached when the work is; ``event`` is the same one, asked elsewhere."""
    event = recorded if event is None else event
    trial.finish()
    for _ in range(2):
        token = trial.long_work(stream)
        recorded.record(*(() if stream is None else (stream,)))
        if token is None:
            return
        said = asked(trial, token, event)
        trial.expect(said is not True or token.done(), "query() was True while the marked work was pending")
        event.synchronize()
        trial.expect(token.done(), "the event's synchronize() returned while the marked work was pending")
        trial.expect(event.query() is True, "query() is not True after synchronize()")


def _moves(trial: Trial, event: Any, stream: Any) -> None:
    """Recorded once more, while what it marked is pending, the event marks what came after."""
    where = () if stream is None else (stream,)
    trial.finish()
    trial.long_work(stream)
    event.record(*where)
    token = trial.long_work(stream)
    event.record(*where)
    event.synchronize()
    trial.expect(token is None or token.done(), "recorded twice, the event was reached with its first mark")


def _is_new(trial: Trial, stream: Any) -> None:
    """Made after another has gone whose mark is pending, an event says what one says that nobody recorded."""
    trial.finish()
    unused = trial.call(trial.index, False)
    said = _said(unused)
    gone = [trial.call(trial.index, False) for _ in range(3)]
    token = trial.long_work(stream)
    for one in gone:
        one.record(*(() if stream is None else (stream,)))
    gone.clear()
    made = [trial.call(trial.index, False) for _ in range(3)]
    pending = token is not None and not token.done()
    for one in made:
        trial.equal(_said(one), said, "what an event that nobody recorded says once others have gone")
        waited = pending and token is not None and token.done()
        trial.expect(not waited, "query() waited for what another event marks")
    trial.finish()


def _said(event: Any) -> object:
    """What query() says, or raises: of an event that nobody recorded it may do either."""
    try:
        return event.query()
    except Exception as error:
        return type(error).__name__


def _orders(trial: Trial, event: Any, source: Any, waiting: Any) -> None:
    """Work of another stream comes after the mark, and the host does not wait."""
    if waiting is None:
        return
    for given in (True, False):
        trial.finish()
        token = trial.long_work(source)
        event.record(source)
        pending = token is not None and not token.done()
        if given:
            event.wait(waiting)
        else:
            with trial.on(waiting):
                event.wait()
        if pending:
            trial.expect(token is None or not token.done(), "the event's wait() blocked the host")
        mark = trial.work(waiting)
        waiting.synchronize()
        after(trial, token, mark, "the event's wait()")
    trial.finish()
    token = trial.long_work(source)
    quick = trial.work(waiting)
    event.record(waiting)
    event.synchronize()
    early = token is not None and not token.done()
    trial.finish()
    del early, quick


def _outlived(trial: Trial, source: Any, waiting: Any) -> None:
    """A stream waits for a mark, though the event has gone."""
    trial.finish()
    token = trial.long_work(source)
    event: Any = trial.ctx.raw_hook(trial.hook)(*trial.fitted(trial.hook, (trial.index, False)))
    event.record(source)
    event.wait(waiting)
    del event
    gc.collect()
    mark = trial.work(waiting)
    waiting.synchronize()
    after(trial, token, mark, "the wait() of an event that has gone")
    trial.finish()


def _across(trial: Trial, source: Any, waiting: Any) -> None:
    """A stream of another device waits for a mark, and the host does not."""
    trial.finish()
    event, token = trial.call(trial.index, False), trial.long_work(source)
    event.record(source)
    pending = token is not None and not token.done()
    event.wait(waiting)
    blocked = pending and token is not None and token.done()
    trial.expect(not blocked, "wait() of a stream of another device blocked the host")
    mark = trial.work(waiting, waiting.device_index) if hasattr(waiting, "device_index") else None
    waiting.synchronize()
    after(trial, token, mark, "wait() of a stream of another device")
    trial.finish()


def _elapsed_back(end: Any, start: Any) -> float | None:
    """Milliseconds from the later mark to the earlier; ``None`` where that is refused."""
    try:
        found: float = end.elapsed_time(start)
    except Exception:
        return None
    return found


def _measures(trial: Trial) -> None:
    """The time between two marks is that of the work between them, in milliseconds."""
    ratios = []
    for repeat in (1, 8):
        # The host may be held up between its own looks at the clock, and a wrong unit is wrong each time.
        for _ in range(_TRIES):
            found = _measured(trial, repeat)
            if found is None:
                return
            elapsed, lasted, fits = found
            if fits:
                break
        else:
            trial.fail(f"elapsed_time() is {elapsed:g}, and it took {lasted:g} ms")
        ratios.append((elapsed, lasted))
    (once, short), (often, long) = ratios
    if short > _SHORT and long > 4 * short:
        told = f"elapsed_time() is {once:g} for work and {often:g} for eight times as much"
        trial.expect(often > 1.5 * once, told)


def _measured(trial: Trial, repeat: int) -> tuple[float, float, bool] | None:
    """Milliseconds by the marks around some work and by the clock, and whether they fit; ``None``: unknown."""
    clock = getattr(trial.ctx.probe, "now", time.perf_counter)
    start, end = trial.call(trial.index, True), trial.call(trial.index, True)
    if not hasattr(start, "elapsed_time"):
        trial.fail(f"a timed {type(start).__name__} has no elapsed_time")
    trial.finish()
    began = clock()
    start.record()
    tokens = [trial.work() for _ in range(repeat)]
    if tokens[0] is None:
        return None
    last = tokens[-1]
    pending = last is not None and not last.done()
    end.record()
    submitted = clock()
    _elapsed_back(start, end)  # too early, which may raise, and must not be remembered
    end.synchronize()
    ended = clock()
    lasted, waited = (ended - began) * 1e3, (ended - submitted) * 1e3
    elapsed = start.elapsed_time(end)
    trial.expect(type(elapsed) is float, f"elapsed_time() is {elapsed!r}, no float")
    trial.expect(elapsed >= 0, f"elapsed_time() is {elapsed}")
    back = _elapsed_back(end, start)
    told = f"elapsed_time() is {elapsed:g} from one mark to another, and {back} the other way"
    trial.expect(back is None or elapsed == 0 or -1.1 * elapsed <= back <= -0.9 * elapsed, told)
    if not (pending and lasted > _SHORT and trial.runtime is not None):
        return elapsed, 0.0, True
    step = _STEP if elapsed == int(elapsed) else 0.0
    # What submitting took may have been the host's own time; what was waited for afterwards was the work's.
    fits = waited / 30 - step <= elapsed <= 1.6 * lasted + 1 + step
    if hasattr(trial.ctx.probe, "now"):  # the probe's time is the device's own
        fits = fits and abs(elapsed - lasted) <= max(0.1 * lasted, step)
    return elapsed, lasted, fits
