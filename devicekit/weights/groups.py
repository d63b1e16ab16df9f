"""The process groups over which trainers send weights. They have names, and are apart from the engine's own."""

from __future__ import annotations

import logging
import re
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from functools import partial

import torch.distributed
from torch.distributed import ProcessGroup, distributed_c10d
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from devicekit.contract.errors import DeviceKitError
from devicekit.contract.text import shown
from devicekit.coordination import Coordinator, SingleRank, run_on_all_ranks
from devicekit.device import Device
from devicekit.scheduling.errors import Conflict, InvalidOperation
from devicekit.scheduling.messages import Refusal, Reply
from devicekit.scheduling.withdrawals import Withdrawals
from devicekit.weights.operations import DestroyUpdateGroup, GroupReply, InitUpdateGroup

_log = logging.getLogger(__name__)

_LONGER = 2.0  # seconds
_MOST_JOINING = 8  # groups, each on a thread of its own
_LOOKING, _MOST_LOOKING = "devicekit-looking-for-a-group", 64

_MOST_MEMBERS = 1 << 16  # torch makes a table of them on joining
# What can be no host is refused at once: torch would look for it until the time is up.
_HOST = re.compile(r"[A-Za-z0-9_.:%\[\]-]{1,255}")


class GroupFailed(DeviceKitError):
    """A process group could not be joined, or failed in use."""


@dataclass(slots=True)
class _Joining:
    """A group being joined on a thread of its own, so that requests go on meanwhile."""

    thread: threading.Thread
    group: ProcessGroup | None = None
    error: Exception | None = None
    _met: bool = False
    _given_up: bool = False
    _lock: threading.Lock = field(default_factory=threading.Lock)

    def meet(self) -> bool:
        """Called when the other ranks have come; returns whether they are still waited for."""
        with self._lock:
            self._met = not self._given_up
            return self._met

    def give_up(self) -> bool:
        """Stop waiting for the other ranks; returns whether they had not come yet."""
        with self._lock:
            self._given_up = not self._met
            return self._given_up


@dataclass(slots=True)
class UpdateGroups:
    """The update groups of one engine process."""

    device: Device
    rank: int = 0  # of this process among the engine's own
    coordinator: Coordinator = field(default_factory=SingleRank)
    withdrawals: Withdrawals = field(default_factory=Withdrawals)
    _groups: dict[str, tuple[ProcessGroup, float]] = field(default_factory=dict)
    _joining: set[str] = field(default_factory=set)

    def get(self, name: str) -> tuple[ProcessGroup, float]:
        """A group that was joined, and its timeout in seconds.

        Raises:
            Conflict: there is none of this name.
        """
        if name not in self._groups:
            known = ", ".join(map(repr, self._groups)) or "none"
            raise Conflict(f"There is no update group {shown(name)}; there is {known}. Join it first.")
        return self._groups[name]

    def init(self, operation: InitUpdateGroup) -> Callable[[], Reply | None]:
        """Join a group; answered when everybody has joined. A group of the same name is left first.

        That one may belong to a trainer that has died: its successor uses the same name, and nobody else can tell.

        Raises:
            InvalidOperation: a field makes no sense, or the device has no collective backend of its own.
            Conflict: a group of this name is being joined.
        """
        rank, name = operation.rank_offset + self.rank, operation.group_name
        backend = run_on_all_ranks(self.coordinator, lambda: self._backend_for(operation, rank))
        self.discard(name)
        joining = _Joining(
            threading.Thread(target=lambda: self._join_here(joining, operation, rank, backend), daemon=True)
        )
        self._joining.add(name)
        joining.thread.start()
        answer = partial(GroupReply, operation.id, group_name=name, rank=rank, backend=backend)

        def poll() -> Reply | None:
            if not self.coordinator.least(not joining.thread.is_alive()):
                if not (self.withdrawals.has(operation) and self.coordinator.least(joining.give_up())):
                    return None
                self._joining.discard(name)
                message = f"Withdrawn while it waited for the others of update group {shown(name)}."
                return answer(False, message, refusal=Refusal.WITHDRAWN)
            self._joining.discard(name)
            if joining.group is not None:
                self._groups[name] = joining.group, operation.timeout
            try:
                self.coordinator.ready(True, joining.error)
            except Exception as error:
                if joining.group is not None:
                    self.drop(name)
                message = f"Update group {shown(name)} could not be joined: {error}"
                return answer(False, message, refusal=Refusal.FAILED)
            return answer(True, f"Joined {shown(name)}.")

        return poll

    def _backend_for(self, operation: InitUpdateGroup, rank: int) -> str:
        _check(operation, rank)
        name = operation.group_name
        if name in self._joining:
            raise Conflict(
                f"Update group {shown(name)} is being joined; that ends when everybody has come, or its time is "
                "up."
            )
        if len(self._joining) >= _MOST_JOINING:
            raise Conflict(f"{len(self._joining)} update groups are being joined already.")
        if sum(one.name == _LOOKING for one in threading.enumerate()) >= _MOST_LOOKING:
            raise Conflict(
                "Too many update groups that were to be joined never answered: restart this engine."
            )
        backend = operation.backend or self.device.collective_backend()
        if backend is None:
            raise InvalidOperation(
                f"Backend {self.device.backend.label} names no collective backend: say which one to use."
            )
        for part in backend.split(","):  # "gloo", or "cpu:gloo,npu:hccl"
            if not torch.distributed.is_backend_available(part.rpartition(":")[2].strip()):
                has = [one for one in torch.distributed.Backend.backend_list if one != "undefined"]
                have = ", ".join(one for one in has if torch.distributed.is_backend_available(one))
                raise InvalidOperation(
                    f"Collective backend {shown(backend)} is not in this process's torch, which has {have}."
                )
        return backend

    def destroy(self, operation: DestroyUpdateGroup) -> Reply:
        """Leave a group.

        Raises:
            Conflict: there is none of this name.
        """
        self.get(operation.group_name)
        self.drop(operation.group_name)
        return GroupReply(
            operation.id, True, f"Left {shown(operation.group_name)}.", group_name=operation.group_name
        )

    def _join_here(self, joining: _Joining, operation: InitUpdateGroup, rank: int, backend: str) -> None:
        with self.device.current_where_possible():  # collectives take the joining thread's device
            _join(joining, operation, rank, backend)

    def drop(self, name: str) -> None:
        """Forget a group, whatever state it is in."""
        group, _ = self._groups.pop(name)
        torch.distributed.destroy_process_group(group)
        # Some backends wait for what is under way when the last reference goes, until its timeout: not here.
        last = [group]
        del group
        threading.Thread(target=last.clear, daemon=True).start()

    def discard(self, name: str) -> None:
        """As `drop`, if the group is there: other ranks may have lost one that this rank never had."""
        if name in self._groups:
            self.drop(name)

    def close(self) -> None:
        """Leave every group. torch allows one group of a name in a process."""
        for name in list(self._groups):
            self.drop(name)


def _check(operation: InitUpdateGroup, rank: int) -> None:
    if not _HOST.fullmatch(operation.master_address):
        raise InvalidOperation(
            f"An update group needs its master's host name or IP address, not {shown(operation.master_address)}."
        )
    if not 0 < operation.master_port < 65536:
        raise InvalidOperation(f"An update group needs a port from 1 to 65535, not {operation.master_port}.")
    if operation.world_size > _MOST_MEMBERS:
        raise InvalidOperation(
            f"An update group has at most {_MOST_MEMBERS} members, not {shown(operation.world_size)}: world_size."
        )
    if not 0 < rank < operation.world_size:
        raise InvalidOperation(
            f"Rank {rank} does not fit into a group of {operation.world_size}; rank 0 is the trainer."
        )
    if not operation.timeout > 0:
        raise InvalidOperation(f"A timeout is a positive number of seconds, not {operation.timeout}.")


def _meet(address: str, rank: int, world_size: int, timeout: timedelta) -> tuple[Store, int, int]:
    """The store where the ranks meet.

    An error does not say what was found at an address without a trainer, or how soon: that would allow port scans.
    """
    # A little longer than torch itself looks: a process that ends while a thread of torch's ends too is aborted.
    limit = timeout.total_seconds() + _LONGER
    deadline = time.monotonic() + limit
    met: list[tuple[Store, int, int]] = []

    def look() -> None:
        try:
            met.append(next(rendezvous(address, rank, world_size, timeout=timeout)))
        except Exception:
            _log.warning("Nobody was met at %s.", address, exc_info=True)

    # torch waits for ever where a connection is taken and nothing is said.
    looking = threading.Thread(target=look, name=_LOOKING, daemon=True)
    looking.start()
    looking.join(limit)
    if met:
        return met[0]
    time.sleep(max(0.0, deadline - time.monotonic()))
    raise GroupFailed(f"nobody was met at {address} within {timeout.total_seconds():g} s")


def _join(joining: _Joining, operation: InitUpdateGroup, rank: int, backend: str) -> None:
    try:
        timeout = timedelta(seconds=operation.timeout)
        address = f"tcp://{operation.master_address}:{operation.master_port}"
        store, rank, world_size = _meet(address, rank, operation.world_size, timeout)
        if not joining.meet():  # whoever asks for this group now has a thread of their own
            raise GroupFailed("it was withdrawn")
        store.set_timeout(timeout)
        # The prefix is what trainers use: both sides must look for each other under the same keys. torch has no
        # public function for a group that is not a part of the default one.
        joining.group, _ = distributed_c10d._new_process_group_helper(
            world_size,
            rank,
            [],
            torch.distributed.Backend(backend),
            PrefixStore(operation.group_name, store),
            operation.group_name,  # type: ignore[arg-type]  # older torch has no type of its own for it
            timeout=timeout,
        )
        distributed_c10d._world.pg_group_ranks[joining.group] = {one: one for one in range(world_size)}
    except Exception as error:  # handed over to the scheduler's thread, which answers with it
        joining.error = error
