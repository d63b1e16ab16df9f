"""Tensors in shared memory: one memory in two processes, gone when both are, whoever goes first and however."""

from __future__ import annotations

import gc
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from typing import Any

import pytest
import torch

from devicekit.device import get_device
from devicekit.testing.waiting import wait_until

PRELUDE = """
import pickle, sys, torch
from devicekit import get_device
device = get_device("cpu")
def send(thing): sys.stdout.write(pickle.dumps(thing).hex() + "\\n"); sys.stdout.flush()
def receive(): return pickle.loads(bytes.fromhex(sys.stdin.readline()))
"""


class Child:
    """Another process that runs a few lines."""

    def __init__(self, code: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, "-W", "error", "-c", PRELUDE + textwrap.dedent(code)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def send(self, thing: object) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(pickle.dumps(thing).hex() + "\n")
        self.process.stdin.flush()

    def receive(self) -> object:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, self.process.communicate()[1]
        return pickle.loads(bytes.fromhex(line))

    def end(self) -> str:
        """Let it end; what it complained about."""
        _, complaints = self.process.communicate(timeout=60)
        return complaints


@contextmanager
def child(code: str) -> Iterator[Child]:
    one = Child(code)
    try:
        yield one
    finally:
        one.process.kill()
        one.process.wait()
        for pipe in (one.process.stdin, one.process.stdout, one.process.stderr):
            if pipe is not None:
                pipe.close()


def exists(name: str) -> bool:
    return os.path.exists(f"/dev/shm/{name}")


EXPORTER = """
    tensor = torch.arange(6, dtype=torch.bfloat16).view(2, 3)
    send(device.export_ipc(tensor))
    receive()
    send(tensor.tolist())
"""


def test_two_processes_see_one_memory() -> None:
    device = get_device("cpu")
    with child(EXPORTER) as other:
        handle = other.receive()
        tensor = device.import_ipc(handle)
        assert torch.equal(tensor, torch.arange(6, dtype=torch.bfloat16).view(2, 3))
        tensor[1, 1] = 42
        other.send("written")
        assert other.receive() == [[0, 1, 2], [3, 42, 5]]
        assert other.end() == ""
    # The exporter is gone and took the name with it; what is mapped stays.
    assert not exists(handle.name)  # type: ignore[attr-defined]
    assert tensor[1, 1] == 42


def test_a_killed_exporter_leaves_nothing_behind_and_its_importers_alone() -> None:
    device = get_device("cpu")
    with child(EXPORTER) as other:
        handle = other.receive()
        tensor = device.import_ipc(handle)
        os.kill(other.process.pid, signal.SIGKILL)
        other.process.wait()
        wait_until(lambda: not exists(handle.name), 30)  # type: ignore[attr-defined]
        assert tensor.sum() == 15


def test_an_importer_that_ends_takes_nothing_from_the_exporter() -> None:
    device = get_device("cpu")
    tensor = torch.arange(4.0)
    handle = device.export_ipc(tensor)
    for ending in ("pass", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)"):
        with child(f"shared = device.import_ipc(receive()); shared += 1; send(1); {ending}") as other:
            other.send(handle)
            other.receive()
            assert other.end() == ""
    assert tensor.tolist() == [2, 3, 4, 5]
    assert exists(handle.name)  # type: ignore[attr-defined]
    again = device.import_ipc(handle)
    assert again.tolist() == [2, 3, 4, 5]


def test_the_segment_goes_with_the_exporters_last_tensor() -> None:
    device = get_device("cpu")
    tensor = torch.arange(8.0)
    name = device.export_ipc(tensor).name  # type: ignore[attr-defined]
    part = tensor[2:4]
    del tensor
    gc.collect()
    assert exists(name)
    assert part.tolist() == [2, 3]
    del part
    gc.collect()
    assert not exists(name)


_kept: list[torch.Tensor] = []  # to the end of a process of multiprocessing's


def lend(pipe: Connection) -> None:
    _kept.append(torch.arange(4.0))
    pipe.send(get_device("cpu").export_ipc(_kept[0]))
    pipe.recv()


@pytest.mark.filterwarnings("ignore:.*multi-threaded.*fork:DeprecationWarning")
@pytest.mark.parametrize("how", ["fork", "forkserver", "spawn"])
def test_a_process_of_multiprocessing_that_ends_leaves_no_name(how: str) -> None:
    context: Any = multiprocessing.get_context(how)  # its kind is known when it runs
    ours, theirs = context.Pipe()
    process = context.Process(target=lend, args=(theirs,))
    process.start()
    handle = ours.recv()
    shared = get_device("cpu").import_ipc(handle)
    ours.send("end")
    process.join()
    assert process.exitcode == 0
    assert not exists(handle.name)
    assert shared.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("ending", ["del tensor; gc.collect(); os._exit(0)", "sys.exit(0)"])
def test_a_forked_child_takes_nothing_from_the_exporter(ending: str) -> None:
    forking = f"""
    import gc, os
    tensor = torch.arange(4.0)
    handle = device.export_ipc(tensor)
    if not (child := os.fork()):
        {ending}
    os.waitpid(child, 0)
    send(handle)
    receive()
    """
    with child(forking) as other:
        handle = other.receive()
        assert get_device("cpu").import_ipc(handle).tolist() == [0, 1, 2, 3]
        other.send("end")
        assert other.end() == ""
    assert not exists(handle.name)  # type: ignore[attr-defined]


def test_views_and_repeated_exports_share_one_segment() -> None:
    device = get_device("cpu")
    tensor = torch.arange(12.0).view(3, 4)
    first, second = device.export_ipc(tensor), device.export_ipc(tensor)
    column = device.export_ipc(tensor[1:, 2])
    assert first == second
    assert column.name == first.name  # type: ignore[attr-defined]
    assert device.import_ipc(column).tolist() == [6, 10]


def test_parameters_and_turned_tensors_keep_their_values() -> None:
    device = get_device("cpu")
    weight = torch.nn.Parameter(torch.arange(6.0).view(2, 3), requires_grad=False)
    turned = torch.arange(6).view(2, 3).t()
    empty = torch.empty(0, 4)
    for one in (weight, turned, empty):
        values = one.detach().clone()
        assert torch.equal(device.import_ipc(pickle.loads(pickle.dumps(device.export_ipc(one)))), values)
        assert torch.equal(one, values)


def test_a_handle_outlived_by_nobody_is_an_error() -> None:
    device = get_device("cpu")
    tensor = torch.arange(4.0)
    handle = device.export_ipc(tensor)
    del tensor
    gc.collect()
    with pytest.raises(Exception, match="No such file"):
        device.import_ipc(handle)
    with pytest.raises(Exception, match="not the handle"):
        device.import_ipc("psm_1234")


def test_segments_of_others_are_left_alone() -> None:
    segment = SharedMemory(create=True, size=64)
    try:
        get_device("cpu").export_ipc(torch.zeros(3))
        gc.collect()
        assert exists(segment.name)
    finally:
        segment.close()
        segment.unlink()
