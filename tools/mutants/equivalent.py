"""Mutants that are the same program in other words, or differ in speed alone: each with the reason."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {
    "devicekit/scheduling/kv_cache/host_cache.py: comparison: count > pages.available -> "
    "count >= pages.available": "where the two differ there is nothing to evict",
    "devicekit/scheduling/stopping.py: comparison: len(output) < params.min_new_tokens -> "
    "len(output) <= params.min_new_tokens": (
        "where the two differ no token that ends an output can come: such tokens are masked until then"
    ),
}
"""By `Mutant.name`."""
