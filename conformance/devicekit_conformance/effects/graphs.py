"""Graphs hold back what is captured and run it when they are told."""

from __future__ import annotations

import contextlib
from typing import Any

import torch

from devicekit_conformance import process_state
from devicekit_conformance.context import MIB
from devicekit_conformance.crossing import KINDS, Elsewhere
from devicekit_conformance.effects import effect
from devicekit_conformance.effects.replays import all_of_a_graph, outlives_no_pool
from devicekit_conformance.measures import BLOCK
from devicekit_conformance.trial import Trial
from devicekit_conformance.varieties import made_by_the_hook


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
            there = trial.in_a_thread(lambda: trial.call(trial.index))
            trial.expect(there is False, "it is True in a thread whose own stream does not capture")
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
        graph = trial.call(trial.index)
        with trial.current((trial.others or [trial.index])[0]):
            other = trial.call(trial.index)
        trial.expect(graph is not other, "two graphs are one")
        if not trial.ctx.claims("graphs"):
            return
        _fails_cleanly(trial, other)
        _captures_its_own_device(trial, other)
        _has_no_past(trial)
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
            ran = f"replayed {times} times, what was captured ran {int(count[0].item())} times"
            trial.expect(bool((count == times).all().item()), ran)
            trial.expect(
                bool((target == value).all().item()), f"replay() did not run with {value} in its source"
            )
            trial.expect(bool((second == value + 1).all().item()), "replay() ran a part of what was captured")
        count.fill_(0)
        for _ in range(3):
            graph.replay()
        trial.finish()
        trial.equal(
            int(count[0].item()), 3, "how often work ran that was replayed three times without a wait"
        )
        _keeps_its_memory(trial)
        side = trial.new_stream()
        if side is not None:
            source.fill_(11)
            trial.finish()
            with trial.on(side):
                graph.replay()
            trial.finish()
            trial.expect(bool((target == 11).all().item()), "replay() on another stream did not run")
            kinds = made_by_the_hook(trial) if not trial.situation else ()
            for stream in (side, *(stream for _, stream in kinds)):
                _replays_on_the_current_stream(trial, stream)
        source.fill_(13)
        trial.finish()
        Elsewhere(graph).replay()
        trial.finish()
        trial.expect(bool((target == 13).all().item()), "replay() in another thread did not run")
        graph.reset()
        other.reset()
        _is_empty_after_reset(trial, graph, target, count)
        if not trial.situation:
            all_of_a_graph(trial)
    _gives_memory_back(trial)


def _captures_its_own_device(trial: Trial, graph: Any) -> None:
    """Made with another device current, it captures what is done on its own; and draws no random numbers."""
    target, before = trial.filled(4096, 0), trial.own("get_rng_state", trial.index)
    trial.finish()
    with graph.capture():
        target.add_(1)
    trial.finish()
    trial.expect(bool((target.cpu() == 0).all()), "a graph made with another device current captured nothing")
    graph.replay()
    trial.finish()
    trial.expect(bool((target.cpu() == 1).all()), "a graph made with another device current replays nothing")
    after = trial.own("get_rng_state", trial.index)
    same = before is None or after is None or torch.equal(before, after)
    trial.expect(same, "a capture and a replay that draw no random numbers changed the generator's state")


def _has_no_past(trial: Trial) -> None:
    """A graph that is made when another is gone is empty."""
    make, target = trial.ctx.raw_hook(trial.hook), trial.filled(4096, 0)
    for _ in range(2):
        graph: Any = make(*trial.fitted(trial.hook, (trial.index,)))
        with contextlib.suppress(Exception):
            graph.replay()
        trial.finish()
        trial.expect(bool((target.cpu() == 0).all()), "a new graph replays the work of one that is gone")
        with graph.capture():
            target.add_(1)
        del graph


def _is_empty_after_reset(trial: Trial, graph: Any, target: torch.Tensor, count: torch.Tensor) -> None:
    """After reset() nothing of what was captured runs, not even beside what is captured next."""
    target.fill_(1)
    count.fill_(0)
    with contextlib.suppress(Exception):
        graph.replay()  # which has nothing to run, and may say so
    trial.finish()
    idle = bool((target == 1).all().item() and (count == 0).all().item())
    trial.expect(idle, "after reset(), replay() ran what was captured before it")
    with graph.capture():
        count.add_(5)
    graph.replay()
    trial.finish()
    trial.expect(bool((count == 5).all().item()), "captured anew after reset(), replay() ran something else")
    trial.expect(
        bool((target == 1).all().item()), "captured anew, replay() ran what was captured before reset()"
    )
    graph.reset()


def _replays_on_the_current_stream(trial: Trial, side: Any) -> None:
    """A replay is work of the stream that is current then, whichever was when the graph was made and captured."""
    outer = trial.own("current_stream", trial.index)
    if outer is None or not (hasattr(outer, "query") and hasattr(side, "query")):
        return
    block, small = trial.filled(4 * MIB, 1), trial.filled(512, 1)
    for graph, captured_on, replayed_on in (
        (trial.call(trial.index), outer, side),
        (trial.call(trial.index), side, outer),
    ):
        with trial.on(captured_on):
            with graph.capture():
                for _ in range(8):
                    block.add_(1)
            now = trial.own("current_stream", trial.index)
            trial.expect(now == captured_on, "after capture(), another stream is current than before it")
            small.add_(1)
        trial.finish()
        with trial.on(replayed_on):
            graph.replay()
            here_first = replayed_on.query()  # what is done now stays done, so nothing is judged by chance
            elsewhere = captured_on.query()
        wrong = here_first is True and elsewhere is not True
        trial.expect(not wrong, "replay() put its work on another stream than the current one")
        trial.finish()
        graph.reset()


def _keeps_its_memory(trial: Trial) -> None:
    """What a capture allocated is nobody else's while the graph lives."""
    graph, source = trial.call(trial.index), trial.filled(4096, 1)
    with graph.capture():
        between = source + 2
        result = between + 3
    del between
    others = [trial.filled(4096, 99) for _ in range(8)]
    for value in (4, 7):
        source.fill_(value)
        graph.replay()
        trial.finish()
        right = bool((result == value + 5).all().item())
        trial.expect(right, "replay() did not fill what was allocated in capture()")
        whole = all(bool((one == 99).all().item()) for one in others)
        trial.expect(whole, "replay() wrote to memory that was allocated after capture()")
    graph.reset()


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
    for kind in KINDS if not trial.situation else KINDS[:2]:
        before = process_state.python_state() if not trial.situation else {}
        try:
            with graph.capture():  # type: ignore[attr-defined]  # of the vendor's own type
                block.fill_(2)
                raise kind
        except BaseException as error:
            if type(error) is not kind:
                raise
        else:
            trial.fail(f"capture() swallowed {kind.__name__}")
        graph.reset()  # type: ignore[attr-defined]  # nothing else is promised to work
        after = process_state.python_state() if not trial.situation else {}
        changed = process_state.changes(before, after)
        trial.expect(not changed, f"after {kind.__name__} inside capture(), {'; '.join(changed[:2])}")
        if trial.has("is_capturing"):
            left = trial.ctx.raw_hook("is_capturing")(trial.index)
            trial.expect(
                left is False, f"after {kind.__name__} inside capture(), the stream is still capturing"
            )
    block.fill_(3)
    trial.finish()
    trial.expect(bool((block == 3).all().item()), "after an exception inside capture(), work does not run")


def _is_held(trial: Trial, before: int | None, alive: int) -> None:
    """What a replay writes to stays the process's own while a graph of its pool lives."""
    now = trial.ctx.probe.held(trial.index)
    if alive and before is not None and now is not None and trial.ctx.claims("caching_allocator"):
        told = f"a graph that takes {4 * BLOCK} bytes lives, and the device holds {now - before} more than before"
        trial.expect(now - before >= 4 * BLOCK, f"once another of its pool was dropped, {told}")


@effect("graph_pool")
def graph_pool(trial: Trial) -> None:
    with trial.current(trial.index):
        pool, other = trial.call(trial.index), trial.call(trial.index)
        trial.expect(pool is not other, "two pools are one")
        if not (trial.ctx.claims("shared_graph_pools") and trial.has("create_graph")):
            return
        if not trial.situation:
            outlives_no_pool(trial)
        trial.drop_cache()
        before = trial.ctx.probe.held(trial.index)
        source = trial.filled(4096, 1)
        graphs, targets, queues = [], [trial.filled(4096, 0) for _ in range(3)], []
        taken: list[int | None] = []
        for step, target in enumerate(targets, 1):
            graph = trial.other("create_graph", trial.index, pool if step < 3 else other)
            with graph.capture():
                queues.append(trial.own("current_stream", trial.index))
                scratch = torch.empty(4 * BLOCK, dtype=torch.uint8, device=source.device)
                scratch[:4096].copy_(source)
                target.copy_(scratch[:4096] + step)
            del scratch
            graphs.append(graph)
            taken.append(trial.ctx.probe.held(trial.index))
        first, second = taken[:2]
        # Freed memory of one stream need not serve another: then captures in streams of their own share none.
        one_queue = queues[0] is None or queues[0] == queues[1]
        if one_queue and first is not None and second is not None and trial.ctx.claims("caching_allocator"):
            shared = second - first < 4 * BLOCK
            trial.expect(
                shared, f"of two captures that share a pool, the second took {second - first} bytes more"
            )
        for value in (5, 9):
            source.fill_(value)
            for step, (graph, target) in enumerate(zip(graphs, targets, strict=True), 1):
                graph.replay()
                trial.finish()
                right = bool((target == value + step).all().item())
                trial.expect(right, f"of graphs that share a pool, graph {step} replays something else")
        del pool, other  # the graphs hold what they use
        trial.answers.clear()
        alive = dict(zip((1, 2, 3), zip(graphs, targets, strict=True), strict=True))
        graphs.clear()
        for dropped in (3, 1, 2):  # the one of the other pool first, then the first that filled this one
            alive.pop(dropped)[0].reset()
            trial.drop_cache()
            _is_held(trial, before, len(alive))
            over = trial.tensor(4 * BLOCK)[:4096].fill_(99)
            source.fill_(20)
            for step, (graph, target) in alive.items():
                graph.replay()
                trial.finish()
                right = bool((target == 20 + step).all().item())
                trial.expect(right, "a graph replays something else once another of its pool was dropped")
            whole = bool((over == 99).all().item())
            trial.expect(whole, "a graph writes to memory of others once another of its pool was dropped")
            del over
        del source, targets, target, graph
        trial.drop_cache()
        after = trial.ctx.probe.held(trial.index)
        if trial.runtime is not None and before is not None and after is not None:
            told = (
                f"the device held {before} bytes before captures shared pools, and {after} after their last"
            )
            trial.expect(after <= before, told)
