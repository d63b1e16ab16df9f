"""Streams of every kind that there is: what holds of one holds of each, and between any two of them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

from devicekit_conformance.crossing import Elsewhere
from devicekit_conformance.effects.marks import new_event
from devicekit_conformance.trial import Trial

__all__ = ["between_any_two", "made_by_the_hook", "of_every_kind", "waits_for_any"]

_PRIORITIES = (0, -1, 1)

Named = tuple[str, Any]


def made_by_the_hook(trial: Trial) -> list[Named]:
    """A stream of each priority; none where the backend makes none."""
    if not (trial.ctx.claims("streams") and trial.has("create_stream")):
        return []
    return [
        (f"a stream of priority {one}", trial.other("create_stream", trial.index, one)) for one in _PRIORITIES
    ]


def of_every_kind(trial: Trial) -> list[Named]:
    """The device's default stream, one of torch's own, and one of each priority, as far as there are any."""
    found = [
        ("the default stream", trial.in_a_thread(lambda: trial.own("current_stream", trial.index))),
        ("a stream of torch's own", trial.new_stream()),
        *made_by_the_hook(trial),
    ]
    return [(name, one) for name, one in found if hasattr(one, "synchronize")]


def between_any_two(
    trial: Trial,
    waiting: Iterable[Named],
    sources: Sequence[Named],
    road: str,
    wait: Callable[[Any, Any], object],
) -> None:
    """Fail where work of a stream that was told to wait is done before what it waits for.

    Args:
        road: what ``wait`` calls.
        wait: makes the first stream wait for the second; the host does not.
    """
    for name, later in waiting:
        for whose, source in sources:
            if later is source or later == source:
                continue
            trial.finish()
            token = trial.long_work(source, _place(trial, source))
            pending = token is not None and not token.done()
            wait(later, source)
            blocked = pending and token is not None and token.done()
            told = f"{road} by which {name} waits for {whose}"
            trial.expect(not blocked, f"{told} blocked the host")
            mark = trial.work(later, _place(trial, later))
            later.synchronize()
            early = token is not None and mark is not None and mark.done() and not token.done()
            trial.expect(not early, f"work after {told} was done before what it waited for")
    trial.finish()


def waits_for_any(trial: Trial, waiting: Iterable[Named], elsewhere: Iterable[Any] = ()) -> None:
    """Work of these streams comes after that of any other that wait_stream() or wait_event() was given."""
    waiting, own = list(waiting), of_every_kind(trial)
    sources = [*own, *(("a stream of another device", one) for one in elsewhere if one is not None)]
    between_any_two(trial, waiting, sources, "wait_stream()", lambda later, source: later.wait_stream(source))
    if new_event(trial) is None:
        return

    def wait_event(later: Any, source: Any) -> None:
        event = new_event(trial)
        event.record(source)
        later.wait_event(event)

    between_any_two(trial, waiting, own, "wait_event()", wait_event)
    in_a_thread = "a call in another thread"
    between_any_two(
        trial, waiting, own[1:2], in_a_thread, lambda one, source: wait_event(Elsewhere(one), source)
    )
    between_any_two(
        trial, waiting, own[1:2], in_a_thread, lambda one, source: Elsewhere(one).wait_stream(source)
    )


def _place(trial: Trial, stream: Any) -> int:
    place = getattr(stream, "device_index", None)
    return place if isinstance(place, int) else trial.index
