"""Mutants that are the same program in other words, or differ in speed alone: each with the reason."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {
    "devicekit/scheduling/kv_cache/host_cache.py: comparison: count > pages.available -> "
    "count >= pages.available": "where the two differ there is nothing to evict",
    "devicekit/memory/eviction.py: comparison: len(self._queues) > self._limit -> "
    "len(self._queues) >= self._limit": "empty queues are dropped one insertion earlier, which nobody sees",
    "devicekit/scheduling/kv_cache/window_pages.py: comparison: seen <= first -> seen < first": (
        "where the two differ no page has left the window, and there are as many behind it as there may be"
    ),
    "devicekit/scheduling/stopping.py: comparison: len(output) < params.min_new_tokens -> "
    "len(output) <= params.min_new_tokens": (
        "where the two differ no token that ends an output can come: such tokens are masked until then"
    ),
    "devicekit/memory/mirror.py: constant: 1 -> 2": "numpy takes any size below 0 for the one that follows",
    "devicekit/scheduling/adjusting.py: constant: 64 -> 65": "room to begin with, which grows as it is needed",
    "devicekit/memory/attachments.py: arithmetic: 2 * self.total + 64 -> 2 * self.total - 64": (
        "how stale the queue gets before it is tidied: nobody sees it but in the time that it takes"
    ),
}
"""By `Mutant.name`."""
