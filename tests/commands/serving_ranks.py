"""`devicekit serve` as ranks that are started one by one, as launchers on several nodes start them."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import threading
import time
from collections.abc import Sequence
from datetime import timedelta
from multiprocessing.context import ForkServerContext
from multiprocessing.process import BaseProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import torch
import torch.distributed as dist

from devicekit.cli import main
from devicekit.runners.transformers_runner import TransformersRunner
from tests.programs import SLOW_IMPORTS

OPTIONS = [
    "--device",
    "cpu",
    "--kv-tokens",
    "2048",
    "--rank-timeout",
    "300",
    "--rank-heartbeat",
    "0.1",
    "--log-level",
    "warning",
]
COPIES = [*OPTIONS, "--copies"]
BOUND = 100.0  # seconds, a third of the timeout: what is noticed later was not noticed by itself


def address(line: str) -> str:
    assert line.startswith("Serving on http://127.0.0.1:"), line
    return line.removeprefix("Serving on ").strip()


def serve_as_rank(
    environment: dict[str, str], output: str, arguments: list[str], faulty: bool, begun: Event
) -> None:
    torch.set_num_threads(1)
    os.environ.update(environment)
    file = os.open(output, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    for stream in (1, 2):
        os.dup2(file, stream)
    if faulty:
        _replace_loading(begun)
    sys.exit(main(["serve", *arguments]))


def _replace_loading(begun: Event) -> None:
    """Reading a directory of the name of a fault never ends, or fails."""
    stage = TransformersRunner.stage_from_disk

    def other(self: TransformersRunner, path: str, within: Sequence[str]) -> object:
        if Path(path).name == "hangs":
            begun.set()
            threading.Event().wait()
        if Path(path).name == "fails":
            raise OSError("the disk of this node is full")
        return stage(self, path, within)

    TransformersRunner.stage_from_disk = other  # type: ignore[method-assign, assignment]


class Ranks:
    """The processes of two ranks. The store that they meet at is this process's, as it is torchrun's."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._store = dist.TCPStore(
            "127.0.0.1", 0, is_master=True, wait_for_workers=False, timeout=timedelta(seconds=30)
        )
        self._context: ForkServerContext = multiprocessing.get_context("forkserver")
        self._context.set_forkserver_preload(
            [*SLOW_IMPORTS, "devicekit.runners.transformers_runner", "devicekit.server.app", __name__]
        )
        self.begun = self._context.Event()
        self.processes: list[BaseProcess] = []

    def start(
        self,
        model: Path,
        *arguments: str,
        others: Path | None = None,
        faulty: bool = False,
        options: Sequence[str] = COPIES,
    ) -> None:
        """Start both, rank 1 with the model ``others``, or with faults in reading one."""
        for rank in range(2):
            environment = {
                "RANK": str(rank),
                "LOCAL_RANK": str(rank),
                "WORLD_SIZE": "2",
                "MASTER_ADDR": "127.0.0.1",
                "MASTER_PORT": str(self._store.port),
                "TORCHELASTIC_USE_AGENT_STORE": "True",
            }
            path = str(others if rank and others is not None else model)
            given = ["--model", path, "--port", "0", *options, *arguments]
            if rank:  # it must not listen: this machine has no such address
                given += ["--host", "203.0.113.1"]
            process = self._context.Process(
                target=serve_as_rank,
                args=(environment, str(self._file(rank)), given, bool(rank) and faulty, self.begun),
                daemon=True,
            )
            process.start()
            self.processes.append(process)

    def url(self) -> str:
        file = self._file(0)
        deadline = time.monotonic() + 60
        while not file.exists() or not file.read_text().endswith("\n"):
            assert time.monotonic() < deadline, "rank 0 does not serve"
            assert self.processes[0].is_alive(), file.read_text()
            self.processes[0].join(0.05)
        return address(file.read_text().splitlines()[0])

    def said(self, rank: int) -> str:
        return self._file(rank).read_text()

    def status(self, rank: int) -> int | None:
        """The exit status of a rank, waited for."""
        self.processes[rank].join(BOUND)
        return self.processes[rank].exitcode

    def signal(self, rank: int, number: signal.Signals) -> None:
        pid = self.processes[rank].pid
        assert pid is not None
        os.kill(pid, number)

    def close(self) -> None:
        for process in self.processes:
            process.kill()
            process.join()

    def _file(self, rank: int) -> Path:
        return self._folder / f"rank{rank}.txt"
