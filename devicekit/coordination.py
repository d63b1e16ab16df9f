"""What several ranks that serve as one have to agree on before any of them acts.

Everything that may differ between ranks asks one `Coordinator`. A single process is the trivial one
(`SingleRank`): it agrees with itself, and asking it costs a call.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Protocol, TypeVar

_T = TypeVar("_T")


class Coordinator(Protocol):
    """Asked where something may differ between ranks that otherwise decide alike.

    Every rank asks the same questions in the same order, within a step of its scheduler.
    """

    @property
    def lost(self) -> Exception | None:
        """Why ranks cannot be asked any more; ``None`` while all are there."""
        ...

    def admit(self) -> None:
        """Raise InvalidOperation if an operation is begun of which only this rank knows."""
        ...

    def least(self, value: int) -> int:
        """The smallest of a count (0 or more) over all ranks; 0 once a rank is lost."""
        ...

    def first(self, value: int | None) -> int | None:
        """Rank 0's value (0 or more). Outside of a step, and once a rank is lost: one's own."""
        ...

    def ready(self, done: bool, error: Exception | None = None) -> bool:
        """Whether every rank is done.

        Raises:
            Exception: ``error``, if it is the same everywhere.
            RanksFailed: it failed on some ranks.
            RankLost: nobody can tell any more.
        """
        ...

    def outcomes(self, what: str, own: int) -> list[int]:
        """The outcome (0 or more) that each rank has of one thing that all do, by rank. Raises RankLost."""
        ...

    def texts(self, text: str) -> list[str]:
        """The text of each rank, by rank. Raises RankLost."""
        ...

    def names(self, own: Sequence[str]) -> tuple[str, ...]:
        """The names that any rank gives, each with its ranks unless all give it; ``own`` once a rank is lost."""
        ...

    def exchanging(self) -> AbstractContextManager[None]:
        """A block in which ranks exchange tensors. A failure in it is final: RankLost on all."""
        ...


class SingleRank:
    """The coordinator of a single process: it agrees with itself."""

    lost: Exception | None = None

    def admit(self) -> None:
        """Nothing to check: there is no other rank."""

    def least(self, value: int) -> int:
        return value

    def first(self, value: int | None) -> int | None:
        return value

    def ready(self, done: bool, error: Exception | None = None) -> bool:
        if error is not None:
            raise error
        return done

    def outcomes(self, what: str, own: int) -> list[int]:
        return [own]

    def texts(self, text: str) -> list[str]:
        return [text]

    def names(self, own: Sequence[str]) -> tuple[str, ...]:
        return tuple(own)

    def exchanging(self) -> AbstractContextManager[None]:
        return nullcontext()


def run_on_all_ranks(coordinator: Coordinator, act: Callable[[], _T]) -> _T:
    """Do something on every rank. Raises on all of them if it fails on any, as `Coordinator.ready` does."""
    failure: Exception | None = None
    try:
        done = act()
    except Exception as error:
        failure = error
    coordinator.ready(True, failure)
    return done
