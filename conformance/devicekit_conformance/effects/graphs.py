"""Graphs hold back what is captured and run it when they are told."""

from __future__ import annotations

import torch

from devicekit_conformance.effects import effect
from devicekit_conformance.measures import BLOCK
from devicekit_conformance.trial import Trial


class _Deliberate(Exception):
    pass


@effect("is_capturing")
def is_capturing(trial: Trial) -> None:
    trial.expect(trial.call(trial.index) is False, "it is True, and nothing is captured")
    if not (trial.ctx.claims("graphs") and trial.has("create_graph")):
        return
    with trial.current(trial.index):
        graph = trial.other("create_graph", trial.index)
        source, target = trial.filled(4096, 1), trial.filled(4096, 0)
        with graph.capture():
            trial.expect(trial.call(trial.index) is True, "it is not True inside capture()")
            for index in trial.others:
                said = trial.ctx.raw_hook(trial.hook)(index)
                trial.expect(said is False, f"device {index} does not capture, and it says so of it")
            target.copy_(source)
        trial.expect(trial.call(trial.index) is False, "it is not False after capture()")
        graph.reset()
    for index in trial.others:
        with trial.current(index):
            graph = trial.other("create_graph", index)
            source, target = trial.filled(4096, 1, index), trial.filled(4096, 0, index)
            with graph.capture():
                target.copy_(source)
                said = trial.ctx.raw_hook(trial.hook)(trial.index)
            trial.expect(said is False, f"device {index} captures, and it says so of device {trial.index}")
            graph.reset()


@effect("create_graph")
def create_graph(trial: Trial) -> None:
    with trial.current(trial.index):
        graph, other = trial.call(trial.index), trial.call(trial.index)
        trial.expect(graph is not other, "two graphs are one")
        if not trial.ctx.claims("graphs"):
            return
        _fails_cleanly(trial, other)
        source = trial.filled(4096, 1)
        target, second, count = (trial.filled(4096, 0) for _ in range(3))
        trial.finish()
        with graph.capture():
            target.copy_(source)
            second.copy_(target)
            second.add_(1)
            count.add_(1)
        trial.finish()
        idle = torch.equal(target.cpu(), torch.zeros_like(target.cpu()))
        trial.expect(idle, "captured work ran during capture()")
        for times, value in enumerate((2, 5, 9), 1):
            source.fill_(value)
            graph.replay()
            trial.finish()
            trial.expect(bool((count == times).all().item()), "replay() ran what was captured more than once")
            trial.expect(
                bool((target == value).all().item()), f"replay() did not run with {value} in its source"
            )
            trial.expect(bool((second == value + 1).all().item()), "replay() ran a part of what was captured")
        side = trial.new_stream()
        if side is not None:
            source.fill_(11)
            trial.finish()
            with trial.on(side):
                graph.replay()
            trial.finish()
            trial.expect(bool((target == 11).all().item()), "replay() on another stream did not run")
        graph.reset()
        other.reset()
    _gives_memory_back(trial)


def _gives_memory_back(trial: Trial) -> None:
    """After reset(), what a capture allocated goes back when the cache is emptied."""
    if trial.runtime is None or not callable(getattr(trial.runtime, "empty_cache", None)):
        return
    with trial.current(trial.index):
        trial.drop_cache()
        before = trial.ctx.probe.held(trial.index)
        graph, source = trial.call(trial.index), trial.filled(4 * BLOCK, 1)
        with graph.capture():
            result = source + 1
        trial.finish()
        graph.reset()
        del result, source
        trial.drop_cache()
        after = trial.ctx.probe.held(trial.index)
        told = f"the device held {before} bytes before a graph was captured, and {after} after its reset()"
        trial.expect(before is None or after is None or after <= before, told)
        del graph


def _fails_cleanly(trial: Trial, graph: object) -> None:
    """An exception inside capture() comes out, and ends the capture."""
    block = trial.filled(512, 1)
    try:
        with graph.capture():  # type: ignore[attr-defined]  # of the vendor's own type
            block.fill_(2)
            raise _Deliberate
    except _Deliberate:
        pass
    else:
        trial.fail("capture() swallowed an exception")
    if trial.has("is_capturing"):
        left = trial.ctx.raw_hook("is_capturing")(trial.index)
        trial.expect(left is False, "after an exception inside capture(), the stream is still capturing")
    block.fill_(3)
    trial.finish()
    trial.expect(bool((block == 3).all().item()), "after an exception inside capture(), work does not run")
