"""torch.accelerator's names on any open device, and the memory helpers of accelerate."""

from __future__ import annotations

import inspect

import pytest
import torch

import devicekit
import devicekit_accelerate
import devicekit_accelerator as accelerator
from devicekit.contract.errors import UnsupportedHook


@pytest.fixture
def sim(sim_device, monkeypatch: pytest.MonkeyPatch) -> devicekit.Device:
    monkeypatch.setenv("DEVICEKIT_BACKEND", "sim")
    return sim_device


def test_every_function_of_torch_is_there_and_takes_the_same() -> None:
    for name in torch.accelerator.__all__:
        ours, theirs = getattr(accelerator, name), getattr(torch.accelerator, name)
        if inspect.isfunction(theirs) and not hasattr(theirs, "__deprecated__"):
            kinds = [one.kind for one in inspect.signature(theirs).parameters.values()]
            assert [one.kind for one in inspect.signature(ours).parameters.values()] == kinds, name


def test_devices_are_counted_switched_and_restored(sim) -> None:
    assert accelerator.is_available()
    assert accelerator.device_count() == 2
    assert accelerator.current_accelerator() == torch.device(sim.torch_device.type)
    with accelerator.device_index(1):
        assert accelerator.current_device_index() == 1
        with accelerator.device_index(None):
            assert accelerator.current_device_index() == 1
    assert accelerator.current_device_index() == 0
    accelerator.set_device_index(1)
    assert accelerator.current_device_index() == 1
    accelerator.set_device_index(-1)
    assert accelerator.current_device_index() == 1
    accelerator.set_device_index(0)


def test_memory_is_that_of_the_device_that_is_asked(sim) -> None:
    before = accelerator.memory_allocated(1)
    kept = torch.ones(1 << 18, device="sim:1")
    assert accelerator.memory_allocated(1) - before >= kept.numel() * 4
    assert accelerator.max_memory_allocated("sim:1") >= accelerator.memory_allocated(1)
    assert accelerator.memory_reserved(1) >= accelerator.memory_allocated(1)
    assert accelerator.get_memory_info(1) == devicekit.get_device("sim:1").memory_info().free_and_total
    assert accelerator.memory_stats(1)["allocated_bytes.all.current"] == accelerator.memory_allocated(1)
    del kept
    accelerator.reset_peak_memory_stats(1)
    assert accelerator.max_memory_allocated(1) == accelerator.memory_allocated(1)
    accelerator.empty_cache()
    with pytest.raises(UnsupportedHook, match="two memory_stats"):
        accelerator.reset_accumulated_memory_stats()


def test_what_nobody_counts_is_an_error_and_no_zero() -> None:
    with devicekit.use("cpu"):
        assert not accelerator.is_available()
        assert accelerator.device_count() == 0
        assert accelerator.current_accelerator() is None
        with pytest.raises(accelerator.UnknownFigure, match="cpu"):
            accelerator.memory_allocated()
        with pytest.raises(UnsupportedHook):
            accelerator.current_stream()


def test_a_batch_is_made_smaller_until_it_fits_and_no_further(sim) -> None:
    tried: list[int] = []

    @devicekit_accelerate.find_executable_batch_size(starting_batch_size=4)
    def train(size: int, scale: int) -> int:
        tried.append(size)
        torch.empty(size * scale, dtype=torch.uint8, device="sim")
        return size

    # Three fit, four do not. Few are tried: each time takes a collection of all garbage.
    assert train(sim.memory_info().free // 3 - (2 << 20)) == 3
    assert tried == [4, 3]
    with pytest.raises(RuntimeError, match="No batch size fits"):
        train(1 << 40)
    with pytest.raises(TypeError, match="batch size"):
        train(8, 1)


def test_other_errors_are_not_taken_for_a_lack_of_memory(sim) -> None:
    @devicekit_accelerate.find_executable_batch_size
    def train(size: int) -> None:
        raise ValueError("a trip down memory lane")

    with pytest.raises(ValueError, match="memory lane"):
        train()
    assert devicekit_accelerate.should_reduce_batch_size(MemoryError())


def test_free_memory_is_listed_by_index_and_released(sim) -> None:
    found = devicekit_accelerate.get_max_memory()
    assert set(found) == {0, 1, "cpu"}
    assert devicekit_accelerate.get_max_memory({0: "1GiB"}) == {0: "1GiB"}
    a, b = torch.ones(4, device="sim"), 1
    a, b = devicekit_accelerate.release_memory(a, b)
    assert (a, b) == (None, None)
