"""What a cache of single pages finds: each page by a hash of all before it, the longest unused forgotten first.

The simplest cache that is exact about recency, and what block-hashing engines do. Our tree keeps whole edges,
which must not cost it hits.
"""

from __future__ import annotations

from collections import OrderedDict

from bench.chat import PAGE_SIZE, Turn

_BYTES = PAGE_SIZE * 4


def tokens_found(turns: list[Turn], pages: int) -> int:
    """Prompt tokens of the trace that a cache of `pages` pages has when they are asked for."""
    cached: OrderedDict[int, None] = OrderedDict()  # by hash, the least recently used first
    found = 0
    for turn in turns:
        chain = _chain(turn.full.tobytes())
        reusable = (len(turn.prompt) - 1) // PAGE_SIZE  # the model must compute one token at least
        for page in chain[:reusable]:
            if page not in cached:
                break
            found += PAGE_SIZE
        # What the turn has in hand is out of the order while it lasts, and back with its end first.
        for page in chain:
            cached.pop(page, None)
        in_hand = -(-len(turn.full) // PAGE_SIZE)  # the last page, which is not full, too
        while len(cached) > pages - in_hand:
            cached.popitem(last=False)
        cached.update(dict.fromkeys(reversed(chain)))
    return found


def _chain(key: bytes) -> list[int]:
    """A hash of every whole page and all before it."""
    chain: list[int] = []
    last = 0
    for at in range(0, len(key) - _BYTES + 1, _BYTES):
        last = hash((last, key[at : at + _BYTES]))
        chain.append(last)
    return chain
