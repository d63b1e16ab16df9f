"""Work that goes deep: on a thread of its own that has room for it.

A library in C or Rust that calls itself for each level of what it reads ends the whole process where the stack
ends. How deep a text can go is bounded by its length; the stack is made for that.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from typing import TypeVar

_STACK = 64 << 20  # bytes of address space, of which only what is used takes memory
_starting = threading.Lock()

T = TypeVar("T")


def with_deep_stack(work: Callable[[], T]) -> T:
    """Do some work; what it gives, or raises."""
    outcome: Future[T] = Future()

    def run() -> None:
        try:
            outcome.set_result(work())
        except BaseException as error:
            outcome.set_exception(error)

    with _starting:  # the size is of all threads that are started now
        before = threading.stack_size(_STACK)
        try:
            threading.Thread(target=run, name="devicekit-deep", daemon=True).start()
        finally:
            threading.stack_size(before)
    return outcome.result()
