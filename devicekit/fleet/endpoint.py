"""How the fleet speaks to one engine: a path and a body, a status and a document."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Protocol


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
        return self.status < 400 and self.document.get("success", True) is not False

    @property
    def message(self) -> str:
        """The engine's message, for people."""
        error = self.document.get("error")
        nested = error.get("message") if isinstance(error, Mapping) else None
        found = self.document.get("message") or nested or self.document.get("status_message")
        return str(found) if found else ("" if self.success else f"status {self.status}")


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
