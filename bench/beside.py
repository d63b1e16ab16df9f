"""Peers beside us: the same case, timed in turns in one process, with whatever peers are installed.

Times are those of the host's bookkeeping alone: no model runs on either side, and tokens are made up. What is in a
figure differs where the engines do, and each case says how.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TextIO

from bench.harness import Row, cpu_seconds, rows_beside
from bench.pages import used_pool
from bench.peers import peers
from bench.peers.peer import Case
from bench.peers.peer import Peer as Engine
from bench.serving_steps import cpu_step, scheduler_of, served

_ROUNDS = 15


@dataclass(frozen=True, slots=True)
class Ours:
    """A case of ours, and what it is to be held against."""

    case: str
    make: Case
    theirs: str  # the peers' case of which it is the counterpart
    sizes: tuple[int, ...]
    targets: Mapping[tuple[str, int], float]  # by peer and size
    says: str


def run(told: TextIO | None = None) -> list[Row]:
    """A row for each case, size and peer. Nothing is there for a peer that is not installed."""
    out = told or sys.stdout
    there, absent = peers()
    for peer in there:
        print(f"{peer.name} {peer.version}; stubbed: {peer.stubbed}", file=out)
    for name, why in absent.items():
        print(f"{name}: not run ({why})", file=out)
    rows: list[Row] = []
    for ours in CASES:
        counterparts = [peer for peer in there if ours.theirs in peer.cases]
        if counterparts:
            for size in ours.sizes:
                rows += _beside(ours, size, counterparts)
    return rows


def _beside(ours: Ours, size: int, counterparts: Sequence[Engine]) -> list[Row]:
    mine = ours.make(size)
    theirs = {peer.name: peer.cases[ours.theirs](size) for peer in counterparts}
    stubs = [f"{peer.name} {peer.version}, made up: {peer.stubbed}." for peer in counterparts]
    says = "\n".join((f"{ours.case}: {ours.says}.", *stubs))
    own: list[float] = []
    others: dict[str, list[float]] = {name: [] for name in theirs}
    for _ in range(_ROUNDS):
        own.append(mine())
        for name, once in theirs.items():
            others[name].append(once())
    targets = {name: target for (name, at), target in ours.targets.items() if at == size}
    return rows_beside(f"{ours.case}, {size:,}", own, others, targets, says)


def _steps(kind: str) -> Case:
    return lambda running: cpu_step(scheduler_of(running, kind))


def _allocation(running: int) -> Callable[[], float]:
    batch = scheduler_of(running, "plain").state.running
    tokens = batch.columns.tokens[:running].copy()

    def steps() -> float:
        spent = 0.0
        for _ in range(20):
            spent += cpu_seconds(batch.begin_step)
            batch.end_step(tokens)
        return spent / 20

    return steps


def _pages(count: int) -> Callable[[], float]:
    pool = used_pool(100_000)

    def once() -> None:
        pool.give(pool.take(count) or b"")

    return lambda: cpu_seconds(once, 400)


_NANO, _VLLM, _SGLANG = "nano-vllm", "vLLM", "SGLang"
_RUNNING = (64, 256, 1024)


def _targets(peer: str, *least: float) -> dict[tuple[str, int], float]:
    return {(peer, size): one for size, one in zip(_RUNNING, least, strict=True)}


CASES = (
    Ours(
        "decode step",
        _steps("plain"),
        "decode step",
        _RUNNING,
        _targets(_NANO, 4, 7, 15) | _targets(_VLLM, 50, 50, 50),
        "greedy requests in the middle of their output, none of which streams; ours lays the batch out as arrays "
        "too, theirs does that in its model runner, which is not in the figure",
    ),
    Ours(
        "streaming step, against their plain one",
        _steps("streaming"),
        "decode step",
        (1024,),
        {},
        "every request streams: its tokens have left the step as columns, and nobody has read them yet",
    ),
    Ours(
        "mixed step, against their plain one",
        _steps("mix"),
        "decode step",
        (1024,),
        {(_NANO, 1024): 8.0, (_VLLM, 1024): 60.0},
        "20 % stream, 10 % are sampled, 5 % have stop strings, each drawn by itself; theirs does none of that",
    ),
    Ours(
        "served churn step",
        served,
        "churn step",
        _RUNNING,
        _targets(_NANO, 2.5, 4, 6),
        "one request in 128 ends and another comes, each with parameters of its own; ours is checked and posted, "
        "as a server's is; a step of ours computes prompts and tokens at once, theirs takes a pass for each",
    ),
    Ours(
        "decode allocation",
        _allocation,
        "decode allocation",
        _RUNNING,
        _targets(_NANO, 3, 6, 15),
        "a page for whoever needs one; ours also writes it to the page table",
    ),
    Ours(
        "take and give so many pages of 100,000",
        _pages,
        "pages",
        (1, 16, 256, 4096),
        {},
        "ours gives ids; theirs keeps an object a block",
    ),
)
