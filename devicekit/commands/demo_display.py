"""What ``devicekit demo`` shows: a line for each verb, and its progress; plain text without rich."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from types import TracebackType
from typing import Protocol

from devicekit.contract.text import human_bytes, human_seconds
from devicekit.scheduling.messages import Blocker, describe


@dataclass(frozen=True, slots=True)
class VerbLine:
    """The line about one verb."""

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


class Display(AbstractContextManager["Display"], Protocol):
    """What the demo reports to."""

    def say(self, text: str) -> None:
        """Show a line of prose."""

    def record(self, line: VerbLine) -> None:
        """Show a verb that was carried out."""

    def progress(self, done: int, total: int, note: str) -> None:
        """Show how many of the requests are done."""


class PlainDisplay:
    """One line for each verb, and a progress line only when it has changed by a tenth."""

    def __init__(self) -> None:
        self._started = time.monotonic()
        self._reported = -1

    def __enter__(self) -> PlainDisplay:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        sys.stdout.flush()

    def say(self, text: str) -> None:
        print(text)

    def record(self, line: VerbLine) -> None:
        print(f"{time.monotonic() - self._started:6.2f} s  {line.verb:<22} {line.outcome}")
        if line.details:
            print(f"{'':10}{'':<22} {line.details}")

    def progress(self, done: int, total: int, note: str) -> None:
        tenth = 10 * done // max(total, 1)
        if tenth != self._reported:
            self._reported = tenth
            print(f"{'':10}{done} of {total} requests done; {note}")
