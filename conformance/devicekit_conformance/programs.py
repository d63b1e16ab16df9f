"""Random programs of hooks: any of them after any other, in any thread, on any device, beside what others made."""

from __future__ import annotations

import contextlib
import gc
import mmap
import random
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from concurrent.futures import TimeoutError as TooLong
from dataclasses import dataclass, replace
from typing import Any

import torch

from devicekit_conformance.calling import arguments_for
from devicekit_conformance.context import Context, Failure, NotApplicable, NotRun
from devicekit_conformance.effects import effect_of
from devicekit_conformance.keeping import Kept, keep, keepable
from devicekit_conformance.repeated import fail_once
from devicekit_conformance.trial import Trial

__all__ = ["Step", "draw", "fault_of"]

_LATER = 100  # calls that are taken to have been made: what effects do at first only, they have done
_STEP_LIMIT = 60.0  # seconds
_ENOUGH = 30.0  # seconds after which no step begins: hooks may be slow, and then there are fewer
_HANGS = "did not return within"
_RUNS = 20  # of parts of a program that failed, to find the shortest
_DEVICES = 3
_TOLD = 6  # of the steps before a failure
_THREADS = ("", "in a second thread", "in a third thread", "in a thread of its own")
_LASTING = 3  # threads that live as long as the program, the first one included
_EVENTS = (
    "the device ran out of memory",
    "the collector ran",
    "the cache was emptied",
    "work was waited for",
)
_CHOOSES = frozenset({"set_index"})  # whose plain call would last


@dataclass(frozen=True)
class Step:
    """One thing that a program does. The hook is judged in it, or called as another's past."""

    kind: str  # effect, call, raise, keep, end, or event
    what: str  # the hook; of an event, what happened
    index: int  # the device
    current: int  # the device that is current meanwhile
    thread: int  # 0 is the first one

    def __str__(self) -> str:
        if self.kind == "event":
            return self.what
        told = {"raise": " raised", "keep": " made what is kept", "end": "'s was ended"}.get(self.kind, "")
        where = f" on device {self.index}" if self.index else ""
        thread = f" {_THREADS[self.thread]}" if self.thread else ""
        return f"{self.what}(){told}{where}{thread}"


def draw(judged: Sequence[str], every: Sequence[str], count: int, seed: str, rounds: int = 2) -> list[Step]:
    """A program in which each judged hook does its work twice in a round, between plain calls of all the others.

    Args:
        judged: hooks whose effects are looked at.
        every: all that the backend has.
        count: its devices.
        seed: of the draw; the same one gives the same program.
    """
    source = random.Random(seed)  # by a text: the same in every Python
    devices = sorted({*range(min(count, _DEVICES - 1)), count - 1})
    steps: list[Step] = []

    def anywhere(kind: str, what: str) -> Step:
        # Most of it happens in the first thread, so that things meet.
        thread = source.choice((0, 0, 0, 1, 2, 3))
        return Step(kind, what, source.choice(devices), source.choice(devices), thread)

    for number in range(rounds):
        part = [(kind, one) for one in judged for kind in ("call", "raise")]
        part += [(source.choice(("call", "raise")), one) for one in every if one not in judged]
        part += [("event", one) for one in _EVENTS]
        part += [(kind, one) for one in every if keepable(one) for kind in ("keep", "end")]
        drawn = [anywhere(kind, what) for kind, what in part]
        for one in judged:  # in both kinds of thread, on the first device and on the last
            drawn.append(Step("effect", one, devices[-(number % 2)], source.choice(devices), 0))
            elsewhere = source.randrange(1, len(_THREADS))
            drawn.append(Step("effect", one, devices[number % 2 - 1], source.choice(devices), elsewhere))
        source.shuffle(drawn)
        steps += drawn
    return steps


def fault_of(ctx: Context, steps: Sequence[Step]) -> str | None:
    """What goes wrong in a program, and after what; ``None`` where nothing does."""
    found = _run(ctx, steps)
    if found is None:
        return None
    place, said = found
    if _HANGS in said:  # each run of a part of it would take as long
        return said
    shortest, said = _shortest(ctx, steps[: place + 1], said)
    before = [str(one) for one in shortest[:-1]]
    if not before:
        return said
    most = f"{len(before) - _TOLD} other steps, " if len(before) > _TOLD else ""
    return f"{said}. Before it: {most}{', '.join(before[-_TOLD:])}"


def _shortest(ctx: Context, steps: Sequence[Step], said: str) -> tuple[Sequence[Step], str]:
    """A part of a program that fails with its last step as all of it did."""
    kept, size, runs = list(steps), len(steps) - 1, 0
    while size >= 1 and runs < _RUNS:
        start = 0
        while start < len(kept) - 1 and runs < _RUNS:
            less = kept[:start] + kept[min(start + size, len(kept) - 1) :]
            runs += 1
            again = _run(ctx, less)
            if again is not None:
                kept, said = less[: again[0] + 1], again[1]
            else:
                start += size
        size //= 2
    return kept, said


def _run(ctx: Context, steps: Sequence[Step]) -> tuple[int, str] | None:
    """Run the steps in a child: the place of the one that failed, and what was said."""
    from devicekit_conformance.trying import in_a_child

    reached = mmap.mmap(-1, 4)  # which the child shares, so that the last step of one that died is known

    def script(trial: Trial) -> None:
        with contextlib.closing(_Program(ctx)) as program:
            enough = time.monotonic() + _ENOUGH
            for place, step in enumerate(steps):
                if time.monotonic() > enough:
                    break
                reached[:] = place.to_bytes(4, "little")
                program.take(step)
            program.end()

    ended, said = in_a_child(ctx, Trial(ctx, steps[-1].what), script, _ENOUGH + _STEP_LIMIT)
    place = int.from_bytes(reached[:], "little")
    reached.close()
    if ended != "fail":
        return None
    step = steps[place]
    return place, said if said.startswith(step.what) or step.kind == "event" else f"{step}: {said}"


class _Program:
    """A program while it runs: its threads, and what its steps made that lasts."""

    def __init__(self, ctx: Context) -> None:
        self._ctx = ctx
        self._threads = [None, *(ThreadPoolExecutor(1) for _ in range(_LASTING - 1))]
        self._kept: dict[str, tuple[int, Kept]] = {}  # by hook, with the thread in which it was made
        self._trial = Trial(ctx, "device_count", watched=False)
        self._blocks = list(self._filled())
        self._trial.finish()
        self._selected = [self._in(thread, self._selection) for thread in range(_LASTING)]
        self._before = list(self._selected)  # what was current in each thread before what selects there

    def _filled(self) -> Iterator[tuple[int, torch.Tensor]]:
        """A block of each device whose contents are known, where they can be read."""
        with contextlib.suppress(NotRun):
            for index in range(self._trial.count):
                block = self._trial.filled(4096, 5 + index, index)
                block.cpu()
                yield index, block

    def take(self, step: Step) -> None:
        """Take one step, and compare what it had no business with. What cannot be decided here is left out."""
        with contextlib.suppress(NotRun, NotApplicable):
            if step.kind == "keep":
                self._keep(step)
            elif step.kind == "end":
                self._end(step.what)
            else:
                self._in(step.thread, lambda: self._do(step))
        self._compare(str(step))

    def _trial_of(self, step: Step) -> Trial:
        return Trial(self._ctx, step.what, index=step.index, situation=_THREADS[step.thread], calls=[_LATER])

    def _do(self, step: Step) -> None:
        trial = self._trial_of(step)
        if step.kind == "event":
            _HAPPENS[step.what](self._trial, step.index)
            return
        with trial.current(step.current):
            if step.kind == "effect":
                effect_of(step.what)(trial)
            elif step.kind == "raise":
                fail_once(trial, 1)
            elif step.what not in _CHOOSES and (arguments := arguments_for(trial)) is not None:
                trial.call(*arguments)

    def _keep(self, step: Step) -> None:
        """Let a hook make something that lasts, in a thread that lasts; of what selects, one for each thread."""
        thread = step.thread % _LASTING
        for hook in [
            one
            for one, (where, kept) in self._kept.items()
            if one == step.what or (where == thread and kept.selects)
        ]:
            self._end(hook)
        trial = self._trial_of(replace(step, thread=thread))
        made = self._in(thread, lambda: keep(trial))
        if made is None:
            return
        self._kept[step.what] = (thread, made)
        if made.selects:
            self._before[thread], self._selected[thread] = (
                self._selected[thread],
                self._in(thread, self._selection),
            )

    def _end(self, hook: str) -> None:
        thread, kept = self._kept.pop(hook, (0, None))
        if kept is None:
            return
        self._in(thread, kept.finish)
        if kept.selects:
            self._selected[thread] = self._before[thread]

    def end(self) -> None:
        """End what lasts, and look at all of it."""
        for hook in list(self._kept):
            self._end(hook)
        self._compare("the last step")

    def close(self) -> None:
        for one in self._threads:
            if one is not None:
                one.shutdown(wait=False)

    def _in(self, thread: int, run: Callable[[], Any]) -> Any:
        """What ``run`` returns or raises in one of the threads."""
        executor = self._threads[thread] if thread < _LASTING else ThreadPoolExecutor(1)
        if executor is None:
            return run()
        try:
            return executor.submit(run).result(_STEP_LIMIT)
        except TooLong:
            executor.shutdown(wait=False)
            raise Failure(f"it {_HANGS} {_STEP_LIMIT:g} s") from None
        finally:
            if thread >= _LASTING:  # it has ended before the next look at the threads
                executor.shutdown()

    def _selection(self) -> dict[str, object]:
        """The device and the streams that are current in the thread that asks, by roads that no hook steers."""
        trial = self._trial
        found: dict[str, object] = {}
        if callable(getattr(trial.runtime, "set_device", None)):  # or effects cannot set it back either
            found["device"] = trial.ctx.probe.current_index()
        for index in range(trial.count):
            found[f"stream of device {index}"] = trial.own("current_stream", index)
        return found

    def _said(self) -> dict[str, object]:
        """The same by the hooks."""
        trial, found = self._trial, dict[str, object]()
        if trial.has("current_index"):
            found["device"] = trial.other("current_index")
        for index in range(trial.count) if trial.has("current_stream") else ():
            found[f"stream of device {index}"] = trial.other("current_stream", index)
        return found

    def _compare(self, after: str) -> None:
        for thread, before in enumerate(self._selected):
            now, said = self._in(thread, lambda: (self._selection(), self._said()))
            for name, was in before.items():
                where = f" {_THREADS[thread]}" if thread else ""
                self._expect(after, now[name] == was, f"the current {name}{where} is another one")
                wrong = was is not None and said.get(name, was) != was
                hook = "current_index" if name == "device" else "current_stream"
                self._expect(after, not wrong, f"{hook}(){where} is not the current {name}")
        for index, block in self._blocks:
            same = bool((block.cpu() == 5 + index).all())
            self._expect(after, same, f"memory in use on device {index} holds other data")
        for _, kept in self._kept.values():
            kept.look(after)

    def _expect(self, after: str, holds: bool, what: str) -> None:
        if not holds:
            raise Failure(f"after {after}, {what}")


def _exhaust(trial: Trial, index: int) -> None:
    trial.ctx.probe.exhaust(index)
    trial.drop_cache()


_HAPPENS: dict[str, Callable[[Trial, int], object]] = {
    _EVENTS[0]: _exhaust,
    _EVENTS[1]: lambda trial, index: gc.collect(),
    _EVENTS[2]: lambda trial, index: trial.drop_cache(),
    _EVENTS[3]: lambda trial, index: trial.finish(),
}
