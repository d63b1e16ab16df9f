"""What the ranks of one engine have to agree on before any of them acts; a single process agrees with itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Agreement(Protocol):
    """Asked where something may differ between ranks that otherwise decide alike.

    Every rank asks the same questions in the same order, within a step of its scheduler.
    """

    def least(self, value: int) -> int:
        """The smallest of a count (0 or more) over all ranks; 0 once a rank is lost."""
        ...

    def ready(self, done: bool, error: Exception | None = None) -> bool:
        """Whether every rank is done.

        Raises:
            Exception: ``error``, if it is the same everywhere.
            RanksFailed: it failed on some ranks.
            RankLost: nobody can tell any more.
        """
        ...

    def texts(self, text: str) -> list[str]:
        """Everybody's text, by rank. Raises RankLost."""
        ...

    def names(self, own: Sequence[str]) -> tuple[str, ...]:
        """What any rank names, with the ranks that do behind it unless all do; ``own`` once a rank is lost."""
        ...


class Alone:
    """One process."""

    def least(self, value: int) -> int:
        return value

    def ready(self, done: bool, error: Exception | None = None) -> bool:
        if error is not None:
            raise error
        return done

    def texts(self, text: str) -> list[str]:
        return [text]

    def names(self, own: Sequence[str]) -> tuple[str, ...]:
        return tuple(own)


def everywhere(ranks: Agreement, act: Callable[[], _T]) -> _T:
    """Do something on every rank. Raises on all of them if it fails on any, as `Agreement.ready` does."""
    failure: Exception | None = None
    try:
        done = act()
    except Exception as error:
        failure = error
    ranks.ready(True, failure)
    return done
