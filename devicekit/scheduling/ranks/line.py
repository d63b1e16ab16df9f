"""A process group between the ranks, until one of them leaves."""

from __future__ import annotations

import time
from collections.abc import Callable
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


class Line:
    """Holds the last reference to a process group: where it goes, connections close, and the others notice."""

    def __init__(self, group: Collectives, leave: Leave) -> None:
        self._group: Collectives | None = group
        self._leave = leave

    def run(self, begin: Callable[[Collectives], Work]) -> None:
        """Begin a collective, and wait for it. Raises RankLost: it failed, or the line is cut."""
        if self._group is None:
            raise self._leave("")
        started = time.monotonic()
        try:
            begin(self._group).wait()
        except RuntimeError as error:
            failure = str(error)
        else:
            return
        # Outside the handler, whose traceback holds on to the group.
        raise self._leave(failure, mine=False, waited=time.monotonic() - started)

    def cut(self) -> Collectives | None:
        """The group, which is forgotten here; None where it was cut before."""
        group, self._group = self._group, None
        return group
