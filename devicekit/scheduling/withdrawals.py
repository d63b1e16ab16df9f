"""Which operations nobody waits for any more, so that they stop waiting too."""

from __future__ import annotations

from devicekit.scheduling.messages import Operation


class Withdrawals:
    """Ids of operations that were withdrawn. A verb that waits asks here beside its deadline.

    What has begun to change anything goes on to its end: only waiting can be withdrawn.
    """

    def __init__(self) -> None:
        self._ids: set[str] = set()

    def add(self, operation_id: str) -> None:
        """Withdraw an operation, and the ones that it is made of."""
        self._ids.add(operation_id)

    def forget(self, operation_id: str) -> None:
        """Forget an operation that is answered."""
        self._ids.discard(operation_id)

    def has(self, operation: Operation) -> bool:
        """Whether the operation, or the one that it is a part of, was withdrawn."""
        # Those that a verb is made of are named "id/part".
        return bool(self._ids) and not self._ids.isdisjoint((operation.id, operation.id.rpartition("/")[0]))
