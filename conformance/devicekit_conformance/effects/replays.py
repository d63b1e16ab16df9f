"""More of graphs: what is captured at length or by chance, kept in a shared pool, and taken back."""

from __future__ import annotations

import gc
from typing import Any

import torch

from devicekit_conformance.measures import BLOCK
from devicekit_conformance.trial import Trial

__all__ = ["all_of_a_graph", "outlives_no_pool", "work_of_a_replay"]

_STEPS = 150  # of a capture: a layer of a model has as many


def all_of_a_graph(trial: Trial) -> None:
    """What holds of one graph holds of each: with a pool and without, captured first and captured again."""
    pools: list[object] = [None]
    if trial.ctx.claims("shared_graph_pools") and trial.has("graph_pool"):
        pools.append(trial.other("graph_pool", trial.index))
    for pool in pools:
        whose = "a graph with a pool of its own" if pool is None else "a graph in a shared pool"
        graph = trial.other("create_graph", trial.index, pool)
        _has_nothing_to_replay(trial, graph, f"{whose} that is new")
        earlier: list[torch.Tensor] = []
        for time in ("first", "second"):
            _captures_all(trial, graph, earlier, f"{whose}, captured for the {time} time,")
            graph.reset()
            _has_nothing_to_replay(trial, graph, f"{whose} that was reset")
    if len(pools) > 1:
        _uses_its_pool(trial, pools[1])
    _draws_nothing(trial)
    _is_over(trial)


def _has_nothing_to_replay(trial: Trial, graph: Any, whose: str) -> None:
    try:
        graph.replay()
    except Exception:
        return
    trial.fail(f"replay() of {whose} did not raise, and there is nothing to run")


def _captures_all(trial: Trial, graph: Any, earlier: list[torch.Tensor], whose: str) -> None:
    counts = [trial.filled(512, 0) for _ in range(2)]
    trial.finish()
    with graph.capture():
        for number in range(_STEPS):
            counts[number % 2].add_(1)
    graph.replay()
    trial.finish()
    ran = sum(int(one[0].item()) for one in counts)
    trial.equal(ran, _STEPS, f"how many of {_STEPS} steps ran when {whose} was replayed once")
    before = sum(int(one[0].item()) for one in earlier)
    trial.expect(
        before in (0, _STEPS), f"when {whose} was replayed, what was captured before its reset() ran, too"
    )
    earlier += counts


def _uses_its_pool(trial: Trial, pool: object) -> None:
    """Captures that share a pool keep their memory in it: what one has freed serves the next."""
    if not trial.ctx.claims("caching_allocator"):
        return
    graphs, queues, held, source = [], [], [], trial.filled(512, 1)
    for _ in range(2):
        graph = trial.other("create_graph", trial.index, pool)
        with graph.capture():
            queues.append(trial.own("current_stream", trial.index))
            scratch = torch.empty(4 * BLOCK, dtype=torch.uint8, device=source.device)
            scratch[:512].copy_(source)
        del scratch
        graphs.append(graph)
        held.append(trial.ctx.probe.held(trial.index))
    for graph in graphs:
        graph.reset()
    first, second = held
    # Freed memory of one stream need not serve another: captures in streams of their own may share none.
    if queues[0] == queues[1] and first is not None and second is not None:
        told = (
            f"of two captures in the pool that they were given, the second took {second - first} bytes more"
        )
        trial.expect(second - first < 4 * BLOCK, told)


def _draws_nothing(trial: Trial) -> None:
    """Random numbers are drawn when they are replayed, and not when they are captured."""
    before = trial.own("get_rng_state", trial.index)
    graph, block = trial.other("create_graph", trial.index), trial.filled(64, 0).view(torch.float32)
    try:
        with graph.capture():
            block.add_(torch.rand(16, device=block.device)).uniform_()
    except Exception:
        graph.reset()
        return  # a generator that cannot be captured
    after = trial.own("get_rng_state", trial.index)
    graph.reset()
    same = before is None or after is None or torch.equal(before, after)
    trial.expect(
        same, "a capture in which numbers are drawn changed the generator's state, and none was drawn yet"
    )


def _is_over(trial: Trial) -> None:
    """What is allocated after a capture is none of the graph's memory, and goes back while the graph lives."""
    if trial.runtime is None or not callable(getattr(trial.runtime, "empty_cache", None)):
        return
    graph, block = trial.other("create_graph", trial.index), trial.filled(512, 0)
    with graph.capture():
        block.add_(1)
    trial.drop_cache()
    before = trial.ctx.probe.held(trial.index)
    after_it = [trial.tensor(size) for size in (4096, BLOCK)]
    after_it.clear()
    trial.drop_cache()
    now = trial.ctx.probe.held(trial.index)
    told = f"the device held {before} bytes, and {now} once blocks were made and freed after a capture"
    trial.expect(before is None or now is None or now <= before, told)
    graph.reset()


def outlives_no_pool(trial: Trial) -> None:
    """A pool's memory goes back with its last graph, though somebody still holds the pool."""
    make: Any = trial.ctx.raw_hook(trial.hook)  # what the trial calls, it keeps
    if trial.runtime is None or not callable(getattr(trial.runtime, "empty_cache", None)):
        return
    pool, source = make(trial.index), trial.filled(64, 1)
    for number in (1, 2):  # and serves again
        trial.drop_cache()
        before = trial.ctx.probe.held(trial.index)
        graphs = [trial.other("create_graph", trial.index, pool) for _ in range(number)]
        for graph in graphs:
            with graph.capture():
                scratch = torch.empty(4 * BLOCK, dtype=torch.uint8, device=source.device)
                scratch[:64].copy_(source)
            del scratch
        for graph in graphs:
            graph.reset()
        del graph, graphs
        gc.collect()
        trial.drop_cache()
        after = trial.ctx.probe.held(trial.index)
        told = f"the device held {before} bytes before {number} captures in a pool, and {after} after"
        trial.expect(before is None or after is None or after <= before, told)


def work_of_a_replay(trial: Trial) -> None:
    """What a replay runs is work like any other: synchronize() waits for it, on whichever stream it runs."""
    if not (trial.ctx.claims("graphs") and trial.has("create_graph")):
        return
    with trial.current(trial.index):
        side, block = trial.new_stream(), trial.filled(512, 1)
        if side is None or not hasattr(side, "query"):
            return
        graph = trial.other("create_graph", trial.index)
        with graph.capture():
            for _ in range(8):
                block.add_(1)
        trial.finish()
        with trial.on(side):
            graph.replay()
        trial.call(trial.index)
        trial.expect(
            side.query() is not False, "a graph that was replayed on a stream was pending when it returned"
        )
        graph.reset()
