"""DK-STATE: what reading statistics costs, since engines poll them."""

from __future__ import annotations

import statistics
import time

from devicekit_conformance.context import Context, NotRun, expect
from devicekit_conformance.measures import stats
from devicekit_conformance.outcomes import Level
from devicekit_conformance.rulebook import requirement

_BLOCKS, _FEWEST = 2000, 100  # live tensors: as many as there is room for


@requirement("DK-STATE-012", Level.SHOULD, profile="memory", hooks=["memory_stats"], after=["DK-STATE-001"])
def reading_is_cheap(ctx: Context) -> None:
    """Reading memory_stats() SHOULD take less than a millisecond, so that engines can poll it."""
    spent = []
    for _ in range(31):
        started = time.perf_counter()
        stats(ctx)
        spent.append(time.perf_counter() - started)
    median = statistics.median(spent)
    expect(median < 1e-3, f"the median of 31 readings is {median * 1e3:.2f} ms")


@requirement("DK-STATE-019", Level.SHOULD, profile="memory", hooks=["memory_stats"], after=["DK-STATE-012"])
def reading_costs_the_same_with_many_blocks(ctx: Context) -> None:
    """Reading memory_stats() SHOULD NOT take longer the more tensors are live."""
    few = _quickest_reading(ctx)
    blocks: list[object] = []
    while len(blocks) < _BLOCKS:
        try:
            blocks.append(ctx.probe.tensor(512, 0))
        except Exception as error:  # a device may give each block a page of many megabytes
            if len(blocks) < _FEWEST:
                raise NotRun(f"there is no room for {_FEWEST} blocks: {error}") from error
            break
    count, many = len(blocks), _quickest_reading(ctx)
    del blocks
    expect(
        many < 5 * few + 2e-4,
        f"it takes {few * 1e6:.0f} us with few tensors live, {many * 1e6:.0f} us with {count}",
    )


def _quickest_reading(ctx: Context) -> float:
    # The quickest one was not interrupted, even on a machine that has more to do than it can.
    spent = []
    for _ in range(31):
        started = time.perf_counter()
        stats(ctx)
        spent.append(time.perf_counter() - started)
    return min(spent)
