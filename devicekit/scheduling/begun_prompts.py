"""Prompts that are being computed, so that nobody else computes what they are about to put into the cache."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable

import numpy as np

from devicekit.scheduling.batch import Int32
from devicekit.scheduling.request import Request, WaitsForPrompt

_Key = tuple[Hashable, int, bytes]  # namespace, where it begins to compute, and its first page from there


class BegunPrompts:
    """Those that are being computed, by the first page that each computes. Lasts for one round of admissions.

    Args:
        page_size: tokens; prefixes are cached in whole pages.
        cached_tokens: how many leading tokens of a waiting request are cached by now.
    """

    def __init__(
        self, begun: Iterable[Request], page_size: int, cached_tokens: Callable[[Request, Hashable], int]
    ) -> None:
        self._size = page_size
        self._cached_tokens = cached_tokens
        self._begun: dict[_Key, Request] = {}
        self._starts: dict[int, None] = {}  # where prompts begin to be computed; in order, unlike a set
        for one in begun:
            self.add(one)

    def add(self, request: Request) -> None:
        """Count a request that has its row and pages, and of which nothing is computed yet or not all."""
        start = request.cached_pages * self._size
        end = start + self._size
        if end <= request.total and not request.no_prefix_sharing:
            key = (request.cache_namespace, start, request.tokens[start:end].tobytes())
            self._begun.setdefault(key, request)
            self._starts[start] = None

    def must_wait(self, request: Request, namespace: Hashable, starts: int) -> bool:
        """Whether a page that this waiting request would have to compute is being computed. Notes that it waits.

        Its wait ends: it waits for those that have begun by now (``starts``, in all), and for later ones only once
        more of it is cached than before.
        """
        most = request.reusable
        for start in self._starts:
            end = start + self._size
            if end > most:
                continue
            one = self._begun.get((namespace, start, request.tokens[start:end].tobytes()))
            if one is None:
                continue
            shared = _common(request.tokens[:most], one.tokens) // self._size * self._size
            cached = self._cached_tokens(request, namespace)
            if shared <= cached:
                continue
            waits = request.waits
            if waits is None:
                request.waits = WaitsForPrompt(starts, starts, cached)
            elif cached > waits.cached:
                waits.last, waits.cached = starts, cached
            elif one.begun > waits.last:
                continue
            return True
        return False


def _common(first: Int32, second: Int32) -> int:
    """How many leading tokens are the same."""
    count = min(len(first), len(second))
    different = np.flatnonzero(first[:count] != second[:count])
    return int(different[0]) if len(different) else count
