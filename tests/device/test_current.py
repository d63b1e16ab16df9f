"""Code that names no device, or names one as torch's functions are told, means the same through devicekit."""

from __future__ import annotations

import threading

import pytest
import torch

import devicekit
from devicekit import hookimpl
from devicekit.testing import SimConfig
from tests.required import Required

TWO = pytest.mark.parametrize("sim_machine", [SimConfig(device_count=2)], indirect=True)


@pytest.fixture
def sim(sim_device, monkeypatch: pytest.MonkeyPatch) -> devicekit.Device:
    monkeypatch.setenv("DEVICEKIT_BACKEND", "sim")
    return sim_device


@TWO
def test_without_an_index_it_is_the_device_that_is_current_now(sim):
    other = devicekit.get_device("sim:1")
    assert devicekit.current_device() is sim
    with other.current():
        assert devicekit.current_device() is other
        assert devicekit.device_for() is other
        assert devicekit.device_for("sim") is other
        assert devicekit.device_for(torch.device(sim.torch_device.type)) is other
        assert devicekit.device_for(-1) is other
        assert devicekit.get_device() is sim
        seen: list[devicekit.Device] = []
        thread = threading.Thread(target=lambda: seen.append(devicekit.current_device()))
        thread.start()
        thread.join()
        assert seen == [sim]  # each thread has a current device of its own
    assert devicekit.current_device() is sim


@TWO
def test_an_index_stays_that_index_whatever_is_current(sim):
    other = devicekit.get_device("sim:1")
    with other.current():
        for named in (0, "sim:0", sim.torch_device, sim, torch.zeros(1, device=sim.torch_device)):
            assert devicekit.device_for(named) is sim
    for named in (1, "sim:1", other.torch_device, torch.zeros(1, device=other.torch_device)):
        assert devicekit.device_for(named) is other


@TWO
def test_accelerators_are_counted_and_the_host_is_none(sim):
    assert devicekit.accelerator_available()
    assert devicekit.accelerator_count() == 2
    with devicekit.use("cpu"):
        assert not devicekit.accelerator_available()
        assert devicekit.accelerator_count() == 0
        assert devicekit.current_device().name == "cpu"


@TWO
def test_what_lies_on_an_accelerator_is_told_from_what_does_not(sim):
    tensor = torch.zeros(1, device=sim.torch_device)
    for what in (tensor, tensor.device, str(tensor.device), "cuda", "xpu:3"):
        assert devicekit.on_accelerator(what)
    for what in (tensor.cpu(), "cpu", torch.device("meta"), torch.zeros(1, device="meta")):
        assert not devicekit.on_accelerator(what)
    with pytest.raises(RuntimeError, match="nonsense"):
        devicekit.on_accelerator("nonsense")


def test_a_backend_whose_hardware_is_away_is_no_accelerator_and_a_broken_one_is_an_error(register):
    class Broken(Required):
        @hookimpl
        def device_count(self) -> int:
            raise OSError("no driver")

    register(Required, name="here", device_type="xla")
    with devicekit.use("here"):
        assert devicekit.accelerator_count() == 1
    with pytest.raises(devicekit.DeviceKitError, match="no driver"):
        register(Broken, name="broken", device_type="xla")
