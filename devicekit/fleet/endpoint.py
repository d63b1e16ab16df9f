"""How the fleet speaks to one engine: a path and a body, a status and a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol

_LONGEST_MESSAGE = 2000  # characters


class Unreachable(Exception):
    """No answer came: it is unknown whether the engine did what it was asked."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What an engine answered."""

    status: int
    document: Mapping[str, object] = field(default_factory=dict)

    @property
    def success(self) -> bool:
        """Whether the engine did what it was asked."""
        return 200 <= self.status < 300 and self.document.get("success", True) is not False

    @property
    def message(self) -> str:
        """The engine's message, for people: of bounded length, in one line, and printable."""
        error = self.document.get("error")
        nested = error.get("message") if isinstance(error, Mapping) else None
        found = self.document.get("message") or nested or self.document.get("status_message")
        if isinstance(found, str) and found:
            return _printable(found)
        return "" if self.success else f"status {self.status}"


def _printable(text: str) -> str:
    """What an engine says is shown in terminals and logs, which a line of its own making could forge."""
    short = text if len(text) <= _LONGEST_MESSAGE else f"{text[:_LONGEST_MESSAGE]}..."
    return "".join(one if one.isprintable() else repr(one)[1:-1] for one in short)


class Endpoint(Protocol):
    """One engine's control plane."""

    @property
    def name(self) -> str:
        """What the engine is called in outcomes: its address."""
        ...

    async def call(
        self, path: str, body: Mapping[str, object] | None = None, *, timeout: float | None = None
    ) -> Answer:
        """POST ``body`` as JSON, or GET where there is none; wait ``timeout`` seconds (None: as is usual).

        Raises:
            Unreachable: no answer came.
        """
        ...

    async def close(self) -> None:
        """End its connections."""
        ...
