"""What may run: whether requests are admitted and forward passes start, and who says that they may not.

Four things stop generation, and each has its own owner. A pause is an operator's. Admission is closed by
operations that wait for the running requests to end, from their submission to their answer. A hold is kept by a
part of the engine that misses something: memory is released, weights are not written. A failure is for good.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType


class HoldToken:
    """One part's right to hold generation back. Requests wait meanwhile."""

    def __init__(self, name: str, change: Callable[[str, str | None], None]) -> None:
        self._name = name
        self._change = change

    def hold(self, reason: str) -> None:
        """Start no forward pass until `release`. Saying so again changes the reason."""
        self._change(self._name, reason)

    def release(self) -> None:
        """It may go on, as far as this part is concerned."""
        self._change(self._name, None)


class AdmissionGate:
    """Whether requests may start and passes may run. Everything in here is changed by its methods alone.

    ``may_run`` says whether a forward pass may start, ``admitting`` whether waiting requests may, and
    ``continue_at`` when a pause ends by itself (the clock's seconds; ``None``: never).
    """

    def __init__(self) -> None:
        self.may_run = self.admitting = True
        self._closed_by: dict[str, None] = {}
        self._holds: dict[str, str] = {}
        self._paused_at: float | None = None
        self.continue_at: float | None = None
        self._epoch = 0
        self._failure = ""

    # -- What anybody may ask ---------------------------------------------------------------------------------

    @property
    def healthy(self) -> bool:
        """Whether forward passes can run at all."""
        return not self._failure

    @property
    def failure(self) -> str:
        """Why nothing will run any more: the device is lost, or another rank. Empty while all is well."""
        return self._failure

    @property
    def paused(self) -> bool:
        return self._paused_at is not None

    @property
    def paused_at(self) -> float | None:
        """The clock's seconds when the pause began; ``None``: there is none."""
        return self._paused_at

    @property
    def epoch(self) -> int:
        """Grows with every change between running and paused: odd while paused."""
        return self._epoch

    @property
    def holds(self) -> Mapping[str, str]:
        """Why no forward pass may run, by who says so."""
        return MappingProxyType(self._holds)

    @property
    def closed_by(self) -> Collection[str]:
        """Ids of the operations that keep new requests out."""
        return self._closed_by.keys()

    # -- Admission, by `Control` ------------------------------------------------------------------------------

    def close(self, operation_id: str) -> None:
        """An operation was submitted that waits for the running requests to end: meanwhile no new ones start."""
        self._closed_by[operation_id] = None
        self.admitting = False

    def open(self, operation_id: str) -> None:
        """It is answered."""
        self._closed_by.pop(operation_id, None)
        self.admitting = not self._closed_by

    # -- Pauses, by the verbs ---------------------------------------------------------------------------------

    def pause(self, now: float) -> bool:
        """Be paused; whether that is new."""
        if self._paused_at is not None:
            return False
        self._paused_at = now
        self._changed()
        self._epoch += 1
        return True

    def continue_by_itself(self, at: float | None) -> None:
        """When the pause ends without anybody saying so. The last to say counts."""
        self.continue_at = at

    def resume(self) -> None:
        """End the pause."""
        self._paused_at = self.continue_at = None
        self._epoch += 1
        self._changed()

    # -- Holds, by parts of the engine ------------------------------------------------------------------------

    def token(self, name: str) -> HoldToken:
        """The means to hold generation back under this name."""
        return HoldToken(name, self._hold)

    def _hold(self, name: str, reason: str | None) -> None:
        if reason is None:
            self._holds.pop(name, None)
        else:
            self._holds[name] = reason
        self._changed()

    # -- The end ----------------------------------------------------------------------------------------------

    def fail(self, why: str) -> None:
        """Generate no more. The first reason is the one that is told."""
        self._failure = self._failure or why
        self._changed()

    def _changed(self) -> None:
        self.may_run = not (self._failure or self._holds or self._paused_at is not None)
