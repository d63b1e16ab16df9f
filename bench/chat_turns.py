"""What a turn of the chat trace costs, and whether the cache finds what it should.

What is found is compared with what a cache of single pages finds on this very trace.
"""

from __future__ import annotations

from bench.chat import PAGE_SIZE, Turn, chat_trace, footprint, replay
from bench.harness import Row, Timing, cpu_seconds, measure_by, timed_row
from bench.page_lru import tokens_found
from devicekit.memory.pages import PageAllocator
from devicekit.memory.prefix import PrefixCache

_BLOCK = 50  # turns whose matches are timed together


def run() -> list[Row]:
    """Every case."""
    turns = chat_trace()
    ample = footprint(turns)
    rows: list[Row] = []
    for name, pages in (("ample", ample), ("a quarter of it", ample // 4)):
        case = f"chat turn, capacity {name}"
        timing, found = _turn(turns, pages)
        asked = sum(len(turn.prompt) - 1 for turn in turns)
        anew = (asked - found) / (asked - tokens_found(turns, pages))
        rows += [
            timed_row(case, timing),
            Row(f"{case}: tokens found", 100 * found / asked, "%"),
            Row(f"{case}: tokens not found, of those of a cache of single pages", anew, "x", target=1.0),
        ]
    matching = _matching(turns, ample)
    rows.append(timed_row("chat turn: key and match", matching))
    return rows


def _turn(turns: list[Turn], pages: int) -> tuple[Timing, int]:
    """What a turn costs, and how many tokens of all prompts were found."""
    caches: list[PrefixCache] = []

    def once() -> float:
        pool = PageAllocator(pages)
        caches[:] = [PrefixCache(pool, PAGE_SIZE)]
        return replay(turns, pool, caches[0])

    timing = measure_by(once, samples=7)
    return timing, caches[0].stats.hit_tokens


def _matching(turns: list[Turn], pages: int) -> Timing:
    """A turn's key and match alone: of each few turns before they run, and of more and more that have run."""
    pool = PageAllocator(pages)
    cache = PrefixCache(pool, PAGE_SIZE)
    blocks = iter([turns[at : at + _BLOCK] for at in range(0, len(turns), _BLOCK)])

    def once() -> float:
        block = next(blocks)

        def match_all() -> None:
            for turn in block:
                cache.match(turn.prompt.tobytes()[:-4])

        seconds = cpu_seconds(match_all) / len(block)
        replay(block, pool, cache)
        return seconds

    return measure_by(once, samples=len(turns) // _BLOCK)
