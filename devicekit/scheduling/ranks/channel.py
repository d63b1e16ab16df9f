"""Tensors from rank to rank, in the middle of a pass or of a verb."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Protocol

import torch
from torch.distributed import Work

from devicekit.scheduling.errors import RankLost


class Leave(Protocol):
    """`RankGroup.leave`."""

    def __call__(self, reason: str, *, mine: bool = True, waited: float = 0.0) -> RankLost: ...


class Collectives(Protocol):
    """What is used of a process group; torch's stubs leave some of it out."""

    def allreduce(self, tensors: list[torch.Tensor]) -> Work: ...

    def allgather(self, outputs: list[list[torch.Tensor]], inputs: list[torch.Tensor]) -> Work: ...

    def broadcast(self, tensor: torch.Tensor, root: int) -> Work: ...

    def abort(self) -> None: ...


class TensorChannel:
    """A process group of the device's own. Every rank calls the same, in the same order.

    Whoever raises between two calls leaves the others waiting: it must `leave` the ranks. Get one from
    `RankGroup.open_channel`.
    """

    def __init__(self, group: Collectives, rank: int, leave: Leave) -> None:
        self._group: Collectives | None = group
        self._rank = rank
        self._leave = leave

    def sum(self, tensor: torch.Tensor) -> None:
        """Add up everybody's contiguous tensor, in place. Raises RankLost."""
        self._attempt(lambda group: group.allreduce([tensor]))

    def gather(self, part: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Everybody's contiguous tensor, whose shapes are known. Raises RankLost."""
        parts = [
            part if rank == self._rank else part.new_empty(tuple(shape)) for rank, shape in enumerate(shapes)
        ]
        if len({tuple(shape) for shape in shapes}) == 1:
            received = [torch.empty_like(part) for _ in shapes]
            self._attempt(lambda group: group.allgather([received], [part]))
            return received
        for rank, one in enumerate(parts):  # libraries gather what is of one size
            if one.numel():
                self._attempt(lambda group, one=one, rank=rank: group.broadcast(one, rank))  # type: ignore[misc]
        return parts

    def drop(self) -> None:
        """Close it. Whoever waits for this rank hears of it."""
        group, self._group = self._group, None
        if group is not None:
            with suppress(Exception):  # what is under way need not end
                group.abort()

    def _attempt(self, begin: Callable[[Collectives], Work]) -> None:
        if self._group is None:
            raise self._leave("")
        started = time.monotonic()
        try:
            begin(self._group).wait()
        except RuntimeError as error:
            failure = str(error)
        else:
            return
        # Outside the handler, whose traceback holds on to the group: connections close with its last reference.
        raise self._leave(failure, mine=False, waited=time.monotonic() - started)
