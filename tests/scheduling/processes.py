"""Processes that take the parts of ranks, as often as tests ask them to."""

from __future__ import annotations

import importlib
import multiprocessing
import os
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext, SpawnContext
from multiprocessing.process import BaseProcess

import torch
import torch.distributed as dist
from torch.distributed import PrefixStore, Store

from tests.scheduling.ranked_world import Record

DEADLINE = 300.0  # seconds for a scenario, beyond what any needs on a busy machine: nobody may hang
ENDING = 10.0  # seconds for a process to end by itself

Scenario = Callable[..., object]


def serve(rank: int, size: int, port: int, pipe: Connection) -> None:
    """The main function of a rank's process: run scenarios until the pipe closes."""
    torch.set_num_threads(1)
    store = dist.TCPStore("127.0.0.1", port, is_master=False, timeout=timedelta(seconds=20))
    met = -1
    while True:
        try:
            meeting, module, name, arguments = pipe.recv()
        except (EOFError, ConnectionResetError):
            return
        try:
            if meeting != met:
                _meet(PrefixStore(str(meeting), store), rank, size)
                met = meeting
            result = getattr(importlib.import_module(module), name)(*arguments)
            pipe.send((True, result))
        except BaseException:
            pipe.send((False, traceback.format_exc()))


def _meet(store: Store, rank: int, size: int) -> None:
    if dist.is_initialized():
        dist.destroy_process_group()
    dist.init_process_group("gloo", store=store, rank=rank, world_size=size, timeout=timedelta(seconds=20))


class World:
    """The processes of ``size`` ranks. The store that they meet at is this process's: it outlives them all.

    Forked from a process that has imported everything they start at once. Otherwise each is an interpreter of its
    own, where sets and dictionaries of strings have another order, as they have in real life.
    """

    def __init__(self, size: int, *, forked: bool) -> None:
        self.store = dist.TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
        self._context: ForkServerContext | SpawnContext = multiprocessing.get_context("spawn")
        if forked:
            self._context = multiprocessing.get_context("forkserver")
            self._context.set_forkserver_preload([__name__])
        self.broken = False
        self._meeting = 0  # grows when ranks have died and others take their places
        self.pipes: list[Connection] = []
        self.processes: list[BaseProcess] = []
        for rank in range(size):
            pipe, process = self._start(rank, size)
            self.pipes.append(pipe)
            self.processes.append(process)

    def _start(self, rank: int, size: int) -> tuple[Connection, BaseProcess]:
        ours, theirs = self._context.Pipe()
        process = self._context.Process(target=serve, args=(rank, size, self.store.port, theirs), daemon=True)
        with hash_seed(rank):
            process.start()
        theirs.close()
        return ours, process

    def play(self, scenario: Scenario, *arguments: object, expect: str = "") -> list[Record]:
        """Run a module's function on every rank; each rank's result.

        Args:
            expect: ranks that will not live to tell, as digits.
        """
        assert not self.broken, "an earlier scenario did not end well"
        self.broken = True
        for pipe in self.pipes:
            pipe.send((self._meeting, scenario.__module__, scenario.__name__, arguments))
        records = [self._result(rank) for rank in range(len(self.pipes)) if str(rank) not in expect]
        self.broken = bool(expect)
        return records

    def replace(self, ranks: str) -> None:
        """Put new processes in the place of those that have not lived to tell."""
        for rank in map(int, ranks):
            self.processes[rank].kill()
            self.processes[rank].join()
            self.pipes[rank].close()
            self.pipes[rank], self.processes[rank] = self._start(rank, len(self.pipes))
        self._meeting += 1
        self.broken = False

    def _result(self, rank: int) -> Record:
        if not self.pipes[rank].poll(DEADLINE):
            raise AssertionError(f"rank {rank} hangs")
        fine, result = self.pipes[rank].recv()
        assert fine, f"rank {rank}: {result}"
        record: Record = result
        return record

    def close(self) -> None:
        """End them: those that are well by themselves, so that they take with them what they share."""
        for pipe in self.pipes:
            pipe.close()
        for process in self.processes:
            if not self.broken:
                process.join(ENDING)
            process.kill()
            process.join()
            process.close()


class Worlds:
    """Worlds that may be used again and again, by their size."""

    def __init__(self) -> None:
        self._worlds: dict[int, World] = {}

    def __call__(self, size: int) -> World:
        if size in self._worlds and self._worlds[size].broken:
            self._worlds.pop(size).close()
        return self._worlds.get(size) or self._worlds.setdefault(size, World(size, forked=False))

    def close(self) -> None:
        for world in self._worlds.values():
            world.close()


@contextmanager
def hash_seed(seed: int) -> Iterator[None]:
    before = os.environ.get("PYTHONHASHSEED")
    os.environ["PYTHONHASHSEED"] = str(seed + 1)
    try:
        yield
    finally:
        del os.environ["PYTHONHASHSEED"]
        if before is not None:
            os.environ["PYTHONHASHSEED"] = before


@contextmanager
def new_world(size: int) -> Iterator[World]:
    """A world of its own, for scenarios that do not leave it whole."""
    world = World(size, forked=True)
    try:
        yield world
    finally:
        world.close()
