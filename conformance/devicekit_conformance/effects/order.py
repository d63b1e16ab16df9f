"""Waiting, streams and events, with more work pending than anybody has patience for."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from devicekit_conformance.crossing import KINDS, Elsewhere
from devicekit_conformance.effects import effect
from devicekit_conformance.effects.marks import (
    after,
    every_wait_counts,
    is_done_when_its_work_is,
    leave_what_is_current,
    new_event,
    unmarked,
)
from devicekit_conformance.effects.replays import work_of_a_replay
from devicekit_conformance.trial import Trial
from devicekit_conformance.varieties import made_by_the_hook, of_every_kind, waits_for_any

# Any int may be asked for; these are other numbers, some of the other sign, once they are cut to 8, 16 or 32 bits.
_PRIORITIES = (0, 0, -1, 1, 100, -100, 200, -200, 40_000, -40_000, 3 << 30, -(3 << 30), 1 << 40, -(1 << 40))
_DEEP = 12  # blocks within each other
_STREAMS = 8  # each of so many is another one: torch_npu has pools of eight, others of 32


@effect("synchronize")
def synchronize(trial: Trial) -> None:
    streams = [None, trial.new_stream(), trial.new_stream()]
    if trial.has("create_stream") and trial.ctx.claims("streams"):
        streams += [trial.other("create_stream", trial.index, priority) for priority in (0, -1, 1)]
    for chosen in ([None], streams, streams[1:2]):
        tokens = [trial.long_work(stream) for stream in chosen if stream is not None or chosen[0] is None]
        trial.call(trial.index)
        for token in tokens:
            trial.expect(
                token is None or token.done(), "work that was submitted before was pending when it returned"
            )
    with trial.on(streams[1]):
        token = trial.long_work()
        other = trial.long_work(streams[2]) if streams[2] is not None else None
        trial.call(trial.index)
        for one in (token, other):
            trial.expect(
                one is None or one.done(), "with another stream current, work was pending when it returned"
            )
    theirs = trial.in_a_thread(lambda: [trial.long_work(), trial.long_work(trial.new_stream())])
    trial.call(trial.index)
    done = all(one is None or one.done() for one in theirs)
    trial.expect(done, "work that another thread had submitted was pending when it returned")
    if not trial.situation:
        work_of_a_replay(trial)


@effect("current_stream")
def current_stream(trial: Trial) -> None:
    outer = trial.call(trial.index)
    own = trial.own("current_stream", trial.index)
    trial.expect(own is None or outer == own, f"it is {outer!r}, and torch's own is {own!r}")
    side, inner = trial.new_stream(), trial.new_stream()
    strange = [trial.new_stream(index) for index in trial.others[:1]]
    if side is None:
        return
    with trial.on(side):
        trial.equal(trial.call(trial.index), side, "with a stream current, the stream")
        with trial.on(inner):
            trial.equal(trial.call(trial.index), inner, "with a second stream current, the stream")
        trial.equal(trial.call(trial.index), side, "after the second stream, the stream")
    trial.equal(trial.call(trial.index), outer, "after these streams, the stream")
    if trial.has("use_stream"):
        with trial.other("use_stream", side):
            elsewhere = trial.in_a_thread(lambda: trial.call(trial.index))
        trial.expect(elsewhere != side, "what one thread made current is current in another")
    for name, stream in of_every_kind(trial) if not trial.situation else ():
        with trial.on(stream):
            trial.equal(trial.call(trial.index), stream, f"with {name} current, the stream")
    for stream in strange:
        with trial.on(stream):
            trial.equal(trial.call(trial.index), outer, "with a stream of another device current, the stream")
    _by_another_road(trial, side, inner)
    if not trial.situation and hasattr(outer, "wait_stream"):
        for asked in (outer, Elsewhere(outer), outer):
            is_done_when_its_work_is(trial, outer, asked)
        waits_for_any(trial, [("the stream that it returned", outer)])


def _by_another_road(trial: Trial, side: Any, inner: Any) -> None:
    """What torch's own function made current is what the hook says, also once a hook made another so."""
    if not callable(getattr(trial.runtime, "stream", None)):
        return
    told = "with a stream made current by a hook and then another by torch's own function, the stream"
    if trial.has("use_stream"):
        with trial.other("use_stream", side), trial.on(inner):
            trial.equal(trial.call(trial.index), inner, told)
    if trial.has("set_current_stream"):
        with trial.on(inner):  # which gives back what was current before
            trial.other("set_current_stream", side)
            with trial.on(inner):
                trial.equal(trial.call(trial.index), inner, told)


@effect("create_stream")
def create_stream(trial: Trial) -> None:
    made = [trial.call(trial.index, priority) for priority in _PRIORITIES]
    first, second = made[0], made[1]
    trial.expect(first is not second and first != second, "two streams are one")
    current = trial.own("current_stream", trial.index)
    trial.expect(current is None or first != current, "it is the current stream, and not a new one")
    for name in ("query", "synchronize", "wait_event", "wait_stream"):
        trial.expect(hasattr(first, name), f"{type(first).__name__} has no {name}")
    for stream in made:
        _is_on(trial, stream)
    _is_as_urgent_as_asked(trial, made)
    is_done_when_its_work_is(trial, first, first)
    is_done_when_its_work_is(trial, first, Elsewhere(first))
    with trial.current(trial.index), trial.on(first):
        is_done_when_its_work_is(trial, first, first)
    _waits(trial, first, second)
    _waits_for_many(trial, first, made[2:])
    if trial.situation:
        return
    for priority in (0, -1, 1):
        many = [trial.call(trial.index, priority) for _ in range(_STREAMS)]
        apart = all(one != other for one, other in itertools.combinations(many, 2))
        trial.expect(apart, f"of {_STREAMS} streams with the priority {priority} two are one")
    _are_apart(trial)
    elsewhere = [trial.new_stream(index) for index in trial.others[:1]]
    every_wait_counts(trial, first, [second, *elsewhere])
    _all_alike(trial, elsewhere)
    event = new_event(trial)
    if event is not None:
        unmarked(trial, first, event)
        marked = new_event(trial)
        calls: dict[str, Callable[[], object]] = {
            "wait_event": lambda: first.wait_event(marked), "wait_stream": lambda: first.wait_stream(second),
            "query": first.query, "synchronize": first.synchronize,
        }  # fmt: skip
        leave_what_is_current(trial, first, calls)


def _all_alike(trial: Trial, elsewhere: list[Any]) -> None:
    """What holds of one stream holds of those of each priority, whichever stream they wait for."""
    made = made_by_the_hook(trial)
    for _, stream in made:
        is_done_when_its_work_is(trial, stream, stream)
    waits_for_any(trial, made, elsewhere)


def _are_apart(trial: Trial) -> None:
    """Streams of one priority differ though others are made between them, and none is one of another device."""
    made = [trial.call(trial.index, priority) for _ in range(_STREAMS) for priority in (0, -1)]
    told = [getattr(one, "priority", None) for one in made]
    for priority in set(told) if len(set(told)) == 2 else ():  # or all of them are of one priority
        many = [one for one, own in zip(made, told, strict=True) if own == priority]
        apart = all(one != other for one, other in itertools.combinations(many, 2))
        trial.expect(apart, f"of {_STREAMS} streams with the priority {priority}, made by turns, two are one")
    for index in trial.others:
        there = [trial.new_stream(index), trial.own("default_stream", index)]
        same = any(one is not None and (one == mine or mine == one) for one in there for mine in made)
        trial.expect(not same, f"a stream is equal to one of device {index}")


def _is_as_urgent_as_asked(trial: Trial, made: list[Any]) -> None:
    """Clamped or not, priorities keep their order, and that of a stream that was asked for with 0 is 0."""
    told = [(wanted, getattr(one, "priority", None)) for wanted, one in zip(_PRIORITIES, made, strict=True)]
    known = sorted((wanted, priority) for wanted, priority in told if type(priority) is int)
    for (wanted, priority), (more, later) in itertools.pairwise(known):
        text = (
            f"streams that were asked for with {wanted} and {more} have the priorities {priority} and {later}"
        )
        trial.expect(priority <= later, text)
    for wanted, priority in known:
        trial.expect(wanted != 0 or priority == 0, f"a stream that was asked for with 0 has {priority}")


def _is_on(trial: Trial, stream: Any) -> None:
    place = getattr(stream, "device_index", None)
    if not isinstance(place, int):
        place = getattr(getattr(stream, "device", None), "index", None)
    trial.expect(place is None or place == trial.index, f"the stream is on device {place}")


def _waits(trial: Trial, stream: Any, source: Any) -> None:
    token = trial.long_work(source)
    pending = token is not None and not token.done()
    stream.wait_stream(source)
    trial.expect(not pending or token is None or not token.done(), "wait_stream() blocked the host")
    mark = trial.work(stream)
    stream.synchronize()
    after(trial, token, mark, "wait_stream()")
    event = new_event(trial)
    if event is None:
        return
    token = trial.long_work(source)
    event.record(source)
    pending = token is not None and not token.done()
    stream.wait_event(event)
    trial.expect(not pending or token is None or not token.done(), "wait_event() blocked the host")
    mark = trial.work(stream)
    stream.synchronize()
    after(trial, token, mark, "wait_event()")


def _waits_for_many(trial: Trial, stream: Any, sources: list[Any]) -> None:
    """A stream waits for as many others as it was told to."""
    trial.finish()
    tokens = [trial.long_work(source) for source in sources]
    for source in sources:
        stream.wait_stream(source)
    mark = trial.work(stream)
    stream.synchronize()
    for token in tokens:
        after(trial, token, mark, f"{len(sources)} calls of wait_stream()")
    trial.finish()


@effect("use_stream")
def use_stream(trial: Trial) -> None:
    outer, inner = trial.new_stream(), trial.new_stream()
    if outer is None:
        return

    def current() -> Any:
        own = trial.own("current_stream", trial.index)
        return trial.other("current_stream", trial.index) if own is None else own

    device, before = trial.ctx.probe.current_index(), current()
    for kind in (None, *KINDS):
        try:
            with trial.call(outer):
                trial.expect(current() == outer, "inside the block, another stream is current")
                elsewhere = trial.in_a_thread(lambda: trial.own("current_stream", trial.index))
                trial.expect(elsewhere != outer, "what one thread made current is current in another")
                token = trial.work()
                with trial.call(inner):
                    trial.expect(current() == inner, "inside a second block, another stream is current")
                trial.expect(
                    current() == outer, "after a block within a block, the first's stream is not current"
                )
                with trial.call(outer):
                    pass
                trial.expect(current() == outer, "after the same stream twice, it is not current")
                if kind is not None:
                    raise kind
        except BaseException as error:
            if kind is None or type(error) is not kind:
                raise
        else:
            trial.expect(kind is None, f"the block swallowed {kind.__name__}" if kind else "")
        how = f"after {kind.__name__} in the block" if kind else "after the block"
        trial.expect(current() == before, f"{how}, the previous stream is not current again")
        now = trial.ctx.probe.current_index()
        trial.expect(now == device, f"{how}, device {now} is current instead of {device}")
        if token is not None and hasattr(outer, "synchronize"):
            outer.synchronize()
            trial.expect(token.done(), "work that was submitted inside the block was not on the stream")
    if not trial.situation:
        _of_any_stream(trial, current)
    _restores_what_was(trial, outer, inner, current)
    _blocks_of_two_threads(trial, outer, inner, current)


def _of_any_stream(trial: Trial, current: Callable[[], Any]) -> None:
    """A block makes any stream current, and what is submitted inside is its work."""
    before = current()
    for name, stream in of_every_kind(trial):
        with trial.current(trial.index), trial.call(stream):
            trial.expect(current() == stream, f"inside a block of {name}, another stream is current")
            token = trial.work()
        trial.expect(
            current() == before, f"after a block of {name}, the previous stream is not current again"
        )
        stream.synchronize()
        trial.expect(token is None or token.done(), f"work inside a block of {name} was not on it")


def _restores_what_was(trial: Trial, outer: Any, inner: Any, current: Callable[[], Any]) -> None:
    """After a block the stream before it is current, whatever was made current inside."""
    before = current()
    if trial.has("set_current_stream"):
        with trial.call(outer):
            trial.other("set_current_stream", inner)
        trial.expect(
            current() == before, "after a block in which another stream was set, that one is current"
        )
    with contextlib.ExitStack() as deep:
        for _ in range(_DEEP):
            deep.enter_context(trial.call(trial.new_stream()))
    trial.expect(current() == before, f"after {_DEEP} blocks within each other, another stream is current")
    for index in trial.others[:1]:
        device = trial.ctx.probe.current_index()
        with trial.call(outer):
            trial.select(index)
        now = trial.ctx.probe.current_index()
        trial.expect(
            now == device, f"after a block in which device {index} was chosen, device {now} is current"
        )
        theirs = trial.own("current_stream", index)
        if theirs is not None and trial.has("set_current_stream"):
            set_there = trial.new_stream(index)
            with trial.current(trial.index), trial.call(outer):
                trial.other("set_current_stream", set_there)
            kept = trial.own("current_stream", index) == set_there
            trial.other("set_current_stream", theirs)
            trial.expect(
                kept, f"after a block, the stream that was set on device {index} is not current there"
            )
        with trial.call(outer), trial.call(trial.new_stream(index)):
            trial.expect(current() == outer, "a block of another device's stream ended that of this one's")
        trial.expect(current() == before, "after blocks on two devices, another stream is current")
        now = trial.own("current_stream", index)
        trial.expect(
            now == theirs, f"after blocks on two devices, another stream of device {index} is current"
        )


def _blocks_of_two_threads(trial: Trial, outer: Any, inner: Any, current: Callable[[], Any]) -> None:
    """Blocks of two threads that overlap, neither within the other, end what they began."""
    use: Any = trial.ctx.raw_hook(trial.hook)
    around, block, other = use(trial.new_stream()), use(outer), use(inner)
    with ThreadPoolExecutor(1) as first, ThreadPoolExecutor(1) as second:
        second.submit(around.__enter__).result()  # so that the two do not begin alike
        began = [thread.submit(current).result() for thread in (first, second)]
        first.submit(block.__enter__).result()
        second.submit(other.__enter__).result()
        first.submit(block.__exit__, None, None, None).result()
        still = second.submit(current).result()
        trial.expect(still == inner, "a block that ended in one thread ended that of another")
        second.submit(other.__exit__, None, None, None).result()
        ended = [thread.submit(current).result() for thread in (first, second)]
        trial.expect(ended == began, "after blocks of two threads that overlapped, another stream is current")
        second.submit(around.__exit__, None, None, None).result()
