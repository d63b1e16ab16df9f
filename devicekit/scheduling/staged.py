"""Which weight updates are at hand, and which of them wait for word to be written.

A verb that settles requests for an update has it read and checked first, while they go on.
"""

from __future__ import annotations


class StagedUpdates:
    """Ids of updates. An update that nobody holds back is written as soon as it may be."""

    def __init__(self) -> None:
        self._held_back: set[str] = set()
        self._at_hand: set[str] = set()

    def hold_back(self, operation_id: str) -> None:
        """Have an update wait, once it is at hand, until `let_go`."""
        self._held_back.add(operation_id)

    def let_go(self, operation_id: str) -> None:
        """It may be written, or is given up."""
        self._held_back.discard(operation_id)

    def held_back(self, operation_id: str) -> bool:
        return operation_id in self._held_back

    def note(self, operation_id: str) -> None:
        """An update is at hand: all that is left is to write it."""
        self._at_hand.add(operation_id)

    def forget(self, operation_id: str) -> None:
        """It was written or refused."""
        self._at_hand.discard(operation_id)

    def at_hand(self, operation_id: str) -> bool:
        return operation_id in self._at_hand
