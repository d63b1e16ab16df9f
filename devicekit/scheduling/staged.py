"""Which weight updates are loaded and ready to be written, and which of them have to wait before that.

A transaction loads and checks its update while requests go on, and has it written once they are settled.
"""

from __future__ import annotations


class StagedUpdates:
    """Ids of updates. An update that nobody holds back is written as soon as it may be."""

    def __init__(self) -> None:
        self._held_back: set[str] = set()
        self._at_hand: set[str] = set()

    def hold_back(self, operation_id: str) -> None:
        """Make an update wait, once it is ready, until `let_go`."""
        self._held_back.add(operation_id)

    def let_go(self, operation_id: str) -> None:
        """End `hold_back`: the update may be written, or is given up."""
        self._held_back.discard(operation_id)

    def held_back(self, operation_id: str) -> bool:
        return operation_id in self._held_back

    def note(self, operation_id: str) -> None:
        """Record that an update is ready: it only has to be written."""
        self._at_hand.add(operation_id)

    def forget(self, operation_id: str) -> None:
        """Forget an update that was written or refused."""
        self._at_hand.discard(operation_id)

    def at_hand(self, operation_id: str) -> bool:
        return operation_id in self._at_hand
