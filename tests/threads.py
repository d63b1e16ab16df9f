"""Runs one piece of work in several threads at once."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from threading import Barrier


def in_threads(count: int, work: Callable[[], object]) -> None:
    """Run ``work`` in ``count`` threads that start together; raises what the first of them to fail raised."""
    start = Barrier(count)

    def one() -> None:
        start.wait()
        work()

    with ThreadPoolExecutor(count) as pool:
        for future in [pool.submit(one) for _ in range(count)]:
            future.result()
