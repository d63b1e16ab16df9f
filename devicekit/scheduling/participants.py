"""Engine parts besides requests that have caches to forget, or work that is in flight."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import MappingProxyType

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Participant:
    """An engine part that has a cache to forget, or work that keeps the scheduler from being idle."""

    name: str
    flush: Callable[[], None] | None = None
    pending: Callable[[], int] | None = None  # how much unfinished work it has
    # Collects work that has finished; called in every step. Between ranks `pending` may shrink only here, and
    # only by what the scheduler's coordinator says has finished on all of them.
    retire: Callable[[], None] | None = None


class Participants:
    """All participants, in the order in which they were registered."""

    def __init__(self) -> None:
        self._all: list[Participant] = []
        self._faults: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self._all)

    def __iter__(self) -> Iterator[Participant]:
        return iter(self._all)

    @property
    def faults(self) -> Mapping[str, str]:
        """Participants that failed when last asked for their work, or to collect it, each with its error."""
        return MappingProxyType(self._faults)

    def register(self, participant: Participant) -> None:
        """Let it take part in flushes, and block them while it has work."""
        self._all.append(participant)

    def pending(self, part: Participant) -> int:
        """How much unfinished work a participant has. One that fails to say counts as having some."""
        if part.pending is None:
            return 0
        asked = f"{part.name}, asked for its work"
        try:
            count = part.pending()
        except Exception as error:
            self._fault(asked, "%s, failed", error)
            return 1
        self._faults.pop(asked, None)
        return count

    def retire(self) -> None:
        """Let each participant collect its finished work. One that fails goes on blocking."""
        for part in self._all:
            if part.retire is None:
                continue
            try:
                part.retire()
            except Exception as error:
                self._fault(part.name, "%s could not collect its finished work", error)
            else:
                self._faults.pop(part.name, None)

    def flush(self) -> tuple[str, ...]:
        """Let each participant forget its cache, even if another fails; the names of those that failed."""
        failed: list[str] = []
        for part in self._all:
            try:
                if part.flush is not None:
                    part.flush()
            except Exception:  # the rest must follow, and the answer says which did not
                _log.exception("%s could not flush its cache", part.name)
                failed.append(part.name)
        return tuple(failed)

    def _fault(self, name: str, message: str, error: Exception) -> None:
        """Note a failure, and log it when it is new."""
        if name not in self._faults:
            _log.error(message, name, exc_info=error)
        self._faults[name] = f"{type(error).__name__}: {error}"
