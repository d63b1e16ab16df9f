"""Tensors from rank to rank, in the middle of a pass or of a verb."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import cast

import torch
import torch.distributed as dist
from torch.distributed import ProcessGroup, distributed_c10d
from torch.distributed.distributed_c10d import ProcessGroupGloo, Store

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import shown
from devicekit.scheduling.ranks.line import Collectives, Leave, Line

_LET_GO = 1.0  # seconds for a library to end what is under way


def open_carrier(
    backend: str, device_type: str, name: str, store: Store, rank: int, size: int, timeout: timedelta
) -> Collectives:
    """A process group of a library's own, which is in nobody else's hands. Every rank calls it.

    Raises:
        ConfigurationError: torch has no such library.
    """
    if backend == "gloo":
        return cast("Collectives", ProcessGroupGloo(store, rank, size, timeout))
    if not dist.is_backend_available(backend):
        raise ConfigurationError(
            f"Tensors of {device_type} go from rank to rank by {shown(backend)}, which this torch does not have: "
            "import the vendor's package first."
        )
    # torch has no public function for a group with a store of its own, and gives all groups of the same ranks one
    # name.
    group, _ = distributed_c10d._new_process_group_helper(
        size,
        rank,
        [],
        dist.Backend(f"{device_type}:{backend}"),
        store,
        name,  # type: ignore[arg-type]  # older torch has no type of its own for it
        timeout=timeout,
    )
    distributed_c10d._world.pg_group_ranks[group] = {one: one for one in range(size)}
    return cast("Collectives", group)


class TensorChannel:
    """A process group of the device's own. Every rank calls the same, in the same order.

    Whoever raises between two calls leaves the others waiting: it must `leave` the ranks. Get one from
    `RankGroup.open_channel`.
    """

    def __init__(self, group: Collectives, rank: int, leave: Leave) -> None:
        self._line = Line(group, leave)
        self._rank = rank

    def sum(self, tensor: torch.Tensor) -> None:
        """Add up everybody's contiguous tensor, in place. Raises RankLost."""
        self._line.run(lambda group: group.allreduce([tensor]))

    def gather(self, part: torch.Tensor, shapes: Sequence[Sequence[int]]) -> list[torch.Tensor]:
        """Everybody's contiguous tensor, whose shapes are known. Raises RankLost."""
        parts = [
            part if rank == self._rank else part.new_empty(tuple(shape)) for rank, shape in enumerate(shapes)
        ]
        if len({tuple(shape) for shape in shapes}) == 1:
            received = [torch.empty_like(part) for _ in shapes]
            self._line.run(lambda group: group.allgather([received], [part]))
            return received
        for rank, one in enumerate(parts):  # libraries gather what is of one size
            if one.numel():
                self._line.run(lambda group, one=one, rank=rank: group.broadcast(one, rank))  # type: ignore[misc]
        return parts

    def drop(self) -> None:
        """Close it. Whoever waits for this rank hears of it."""
        group = self._line.cut()
        if group is None:
            return
        with suppress(Exception):  # not every library can
            group.abort()
        if not isinstance(group, ProcessGroup):
            return  # the last reference goes here, and connections close
        with suppress(Exception):  # torch holds on to it too
            dist.destroy_process_group(group)
        # Some libraries wait for what is under way when the last reference goes, until its timeout: not here. A
        # thread that is still inside of torch when the interpreter ends takes the process down with it.
        last = [group]
        del group
        letting_go = threading.Thread(target=last.clear, daemon=True)
        letting_go.start()
        letting_go.join(_LET_GO)
