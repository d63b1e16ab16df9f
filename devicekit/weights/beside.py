"""Runs work in a thread of its own. The engine's thread looks now and then whether it is done."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Generic, TypeVar

_T = TypeVar("_T")


class Task(Generic[_T]):
    """A piece of work: done in the caller's thread at once, or ``beside`` it.

    Args:
        work: what is to be done.
        let_go: of what it made, if nobody wants that any more.
    """

    def __init__(self, work: Callable[[], _T], let_go: Callable[[_T], None], *, beside: bool) -> None:
        self._work = work
        self._let_go = let_go
        self._made: list[_T] = []
        self._wanted = True
        self._lock = threading.Lock()
        self.error: Exception | None = None  # once done: why there is no result
        self.done = False
        if beside:
            # A daemon: a file system that never answers must not keep the process from ending.
            threading.Thread(target=self._run, name="devicekit-staging", daemon=True).start()
        else:
            self._run()

    @property
    def result(self) -> _T:
        """What the work made, once it is done without an error."""
        return self._made[0]

    def abandon(self) -> None:
        """Drop the result, now or as soon as it is there."""
        with self._lock:
            self._wanted = False
            made = self._take()
        for one in made:
            self._let_go(one)

    def _run(self) -> None:
        made: list[_T] = []
        try:
            made.append(self._work())
        except Exception as error:
            self.error = error
        except BaseException as error:  # libraries that panic; nobody else would hear of it
            self.error = RuntimeError(f"{type(error).__name__}: {error}")
        with self._lock:
            self._made = made
            unwanted = [] if self._wanted else self._take()
            self.done = True
        for one in unwanted:
            self._let_go(one)

    def _take(self) -> list[_T]:
        made, self._made = self._made, []
        return made
