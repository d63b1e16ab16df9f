from __future__ import annotations

import multiprocessing
import os
import socket
from multiprocessing.connection import Connection

import pytest

import devicekit
from devicekit import AllocatorState, MemoryInfo, MemoryStats, hookimpl
from tests.required import Required

GIB = 1 << 30


def backend_with(
    info: MemoryInfo | None = None, stats: MemoryStats | None = None, emptied: list[int] | None = None
):
    class Backend(Required):
        if info is not None:

            @hookimpl
            def memory_info(self, index: int) -> MemoryInfo:
                return info

        if stats is not None:

            @hookimpl
            def memory_stats(self, index: int) -> MemoryStats:
                return stats

        if emptied is not None:

            @hookimpl
            def empty_cache(self) -> None:
                emptied.append(1)

    return Backend


OK = AllocatorState.OK


@pytest.mark.parametrize(
    ("info", "stats", "driver_free", "reusable"),
    [
        (MemoryInfo(100, 400, "runtime"), MemoryStats(OK, allocated=20, active=30, reserved=50), 100, 120),
        (MemoryInfo(100, 400, "runtime"), MemoryStats(OK, allocated=20, reserved=50), 100, 130),
        (MemoryInfo(100, 400, "os"), None, 100, 100),
        (MemoryInfo(100, 400), MemoryStats(AllocatorState.UNINITIALISED), 100, 100),
        (MemoryInfo(100, 400), MemoryStats(AllocatorState.BAD_FORK), 100, None),
        (MemoryInfo(100, 400), MemoryStats(OK, allocated=20), 100, None),
        (MemoryInfo(0, 400), MemoryStats(OK, allocated=5, reserved=5), 0, 0),
        (None, MemoryStats(OK, allocated=20, reserved=50), None, None),
    ],
)
def test_what_the_driver_gives_and_what_can_be_reused_are_told_apart(
    register, info, stats, driver_free, reusable
):
    found = devicekit.available_memory(register(backend_with(info, stats)))
    assert (found.driver_free, found.reusable) == (driver_free, reusable)
    assert found.bytes == (driver_free if reusable is None else reusable)
    assert found.source == (None if info is None else info.source)
    assert found.ranks == 1


def test_the_cache_is_emptied_only_on_request(register):
    emptied: list[int] = []
    device = register(backend_with(MemoryInfo(1, 2), None, emptied))
    devicekit.available_memory(device)
    assert emptied == []
    devicekit.available_memory(device, empty_cache=True)
    assert emptied == [1]


def test_emptying_by_function_says_whether_there_was_anything_to_call(register):
    emptied: list[int] = []
    assert devicekit.empty_device_cache(register(backend_with(emptied=emptied))) is True
    assert emptied == [1]
    assert devicekit.empty_device_cache(register(backend_with(), name="bare")) is False


def _rank(rank: int, port: int, free: int | None, reserved: int | None, answers: Connection) -> None:
    os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
    import torch.distributed as dist

    dist.init_process_group("gloo", rank=rank, world_size=2)
    stats = MemoryStats(OK, allocated=0, reserved=reserved)
    table = {"name": "acme", "device_type": "cpu", "contract": ">=1.0,<2", "indexed": False}
    manifest = devicekit.Manifest.parse({"backend": table})
    devicekit.register_backend(backend_with(MemoryInfo(free, None, "runtime"), stats), manifest)
    answers.send(devicekit.available_memory("acme", group=dist.group.WORLD))
    dist.destroy_process_group()


def _agreed(*ranks: tuple[int | None, int | None]) -> list[devicekit.AvailableMemory]:
    context = multiprocessing.get_context("spawn")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    pipes = [context.Pipe(duplex=False) for _ in ranks]
    processes = [
        context.Process(target=_rank, args=(rank, port, free, reserved, pipes[rank][1]))
        for rank, (free, reserved) in enumerate(ranks)
    ]
    for process in processes:
        process.start()
    answers = [pipe.recv() for pipe, _ in pipes]
    for process in processes:
        process.join()
    return answers


def test_ranks_agree_on_the_exact_minimum_of_each_figure():
    # Neither figure survives a float32, and rank 1 is the smaller in one and the larger in the other.
    smaller, larger = 79 * GIB + 1, 79 * GIB + 3
    for found in _agreed((smaller, 10), (larger, 1)):
        assert (found.driver_free, found.reusable) == (smaller, larger + 1)
        assert found.ranks == 2
        assert type(found.driver_free) is int


def test_what_one_rank_does_not_know_is_unknown_to_all():
    for found in _agreed((GIB, None), (2 * GIB, 5)):
        assert (found.driver_free, found.reusable, found.bytes) == (GIB, None, GIB)
