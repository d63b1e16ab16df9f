"""A timeline of verbs on a terminal, with a progress line below it; plain text where rich is not installed."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from devicekit.commands.text import human_bytes, human_seconds
from devicekit.scheduling.messages import Blocker, describe


@dataclass(frozen=True, slots=True)
class Event:
    """One line of the timeline."""

    verb: str
    outcome: str
    blockers: tuple[Blocker, ...] = ()
    kv_before: int | None = None  # bytes of KV pages in use
    kv_after: int | None = None
    reserved_before: int | None = None  # bytes the allocator holds
    reserved_after: int | None = None
    emptied: bool = False
    seconds: float | None = None

    @property
    def details(self) -> str:
        """Everything but verb and outcome, in one line."""
        parts: list[str] = []
        if self.blockers:
            parts.append(f"blockers: {describe(self.blockers)}")
        if self.kv_before is not None:
            parts.append(f"KV in use {human_bytes(self.kv_before)} → {human_bytes(self.kv_after)}")
        if self.emptied:
            parts.append(f"allocator emptied, reserved {self._reserved}")
        if self.seconds is not None:
            parts.append(f"took {human_seconds(self.seconds)}")
        return "; ".join(parts)

    @property
    def _reserved(self) -> str:
        if self.reserved_before is None:
            return "unknown: this backend does not count"
        return f"{human_bytes(self.reserved_before)} → {human_bytes(self.reserved_after)}"


class Timeline(AbstractContextManager["Timeline"], Protocol):
    """What the demo reports to."""

    def say(self, text: str) -> None:
        """Show a line of prose."""

    def record(self, event: Event) -> None:
        """Show a verb that was carried out."""

    def progress(self, done: int, total: int, note: str) -> None:
        """Show how many of the requests are done."""


class PlainTimeline:
    """One line per event, and a dot-free progress report only when it changes by a tenth."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._reported = -1

    def __enter__(self) -> PlainTimeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout.flush()

    def say(self, text: str) -> None:
        print(text)

    def record(self, event: Event) -> None:
        print(f"{time.monotonic() - self._started:6.2f} s  {event.verb:<22} {event.outcome}")
        if event.details:
            print(f"{'':10}{'':<22} {event.details}")

    def progress(self, done: int, total: int, note: str) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth != self._reported:
            self._reported = tenth
            print(f"{'':10}{done} of {total} requests done; {note}")
