"""Whether requests are admitted and forward passes start, and what prevents it.

Four things stop generation, each with an owner of its own:

- a pause, set by an operator;
- closed admission, from the moment when an operation is submitted that waits for the running requests to end until
  it is answered;
- a hold, set by a part of the engine that cannot work now: its memory is released, or its weights are missing;
- a failure, which is final.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from types import MappingProxyType


class HoldToken:
    """Lets one part of the engine hold generation back. Requests wait meanwhile."""

    def __init__(self, name: str, change: Callable[[str, str | None], None]) -> None:
        self._name = name
        self._change = change

    def hold(self, reason: str) -> None:
        """Start no forward pass until `release`. Calling it again changes the reason."""
        self._change(self._name, reason)

    def release(self) -> None:
        """End this part's hold."""
        self._change(self._name, None)


class AdmissionGate:
    """Whether requests may start and passes may run. Only its own methods change it.

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
        """Why nothing can run any more: the device or a rank is lost. Empty while all is well."""
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
        """The reason of each hold, by the name of the part that holds."""
        return MappingProxyType(self._holds)

    @property
    def closed_by(self) -> Collection[str]:
        """Ids of the operations that keep new requests out."""
        return self._closed_by.keys()

    @property
    def standstill(self) -> str:
        """Why no request can end by itself; empty if it can."""
        if self._holds:
            return f"generation cannot go on: {'; '.join(self._holds.values())}"
        return "generation is paused" if self.paused and self.continue_at is None else ""

    # -- Admission, by `Control` ------------------------------------------------------------------------------

    def close(self, operation_id: str) -> None:
        """Start no new requests until `open`: this operation waits for the running ones to end."""
        self._closed_by[operation_id] = None
        self.admitting = False

    def open(self, operation_id: str) -> None:
        """Undo `close`: the operation is answered."""
        self._closed_by.pop(operation_id, None)
        self.admitting = not self._closed_by

    # -- Pauses, by the verbs ---------------------------------------------------------------------------------

    def pause(self, now: float) -> bool:
        """Begin a pause. Returns False if there was one already."""
        if self._paused_at is not None:
            return False
        self._paused_at = now
        self._changed()
        self._epoch += 1
        return True

    def continue_by_itself(self, at: float | None) -> None:
        """Say when the pause ends by itself; ``None``: never. The last call counts."""
        self.continue_at = at

    def resume(self) -> None:
        """End the pause."""
        self._paused_at = self.continue_at = None
        self._epoch += 1
        self._changed()

    # -- Holds, by parts of the engine ------------------------------------------------------------------------

    def token(self, name: str) -> HoldToken:
        """A token with which the part of this name can hold generation back."""
        return HoldToken(name, self._hold)

    def _hold(self, name: str, reason: str | None) -> None:
        if reason is None:
            self._holds.pop(name, None)
        else:
            self._holds[name] = reason
        self._changed()

    # -- The end ----------------------------------------------------------------------------------------------

    def fail(self, why: str) -> None:
        """Stop generating for good. When called again, the first reason is kept."""
        self._failure = self._failure or why
        self._changed()

    def _changed(self) -> None:
        self.may_run = not (self._failure or self._holds or self._paused_at is not None)
