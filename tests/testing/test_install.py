"""A process gets the device once, or is told why it cannot."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from devicekit.testing import CannotEnable, SimConfig, active, enable, install, is_enabled
from tests.releases import needs_simulator

Interpreter = Callable[[str], str]


def test_enabling_twice_is_harmless_and_gives_the_same_machine() -> None:
    assert enable() is enable()
    assert is_enabled()


def test_another_configuration_is_refused_with_the_way_to_get_it() -> None:
    enable()
    with pytest.raises(ValueError, match=r"simulation\(config\)"):
        enable(SimConfig(capacity=12345 << 12))


def test_importing_enables_nothing_and_use_before_enabling_is_told_so(run: Interpreter) -> None:
    out = run(
        """
        import torch, devicekit.testing.sim_backend
        from devicekit.testing import NotEnabled, active, is_enabled
        print(torch.accelerator.is_available(), hasattr(torch, "sim"), is_enabled())
        try:
            active.simulator()
        except NotEnabled as error:
            print(error)
        """
    )
    flags, message = out.splitlines()
    assert flags == "False False False"
    assert "devicekit.testing.enable()" in message


@needs_simulator
def test_enabling_works_before_anything_else_and_initialises_nothing(run: Interpreter) -> None:
    out = run(
        """
        import torch
        torch.get_device_module()
        from devicekit.testing import SimConfig, enable
        machine = enable(SimConfig(device_count=3))
        print(torch.accelerator.device_count(), torch.sim.is_initialized(), torch.get_device_module().__name__)
        print(torch.ones(2, device="sim:2").sum().item())
        """
    )
    assert out.splitlines() == ["3 False torch.sim", "2.0"]


@needs_simulator
def test_a_process_in_which_another_backend_took_the_place_is_told_which(run: Interpreter) -> None:
    out = run(
        """
        import torch
        torch.utils.rename_privateuse1_backend("acme")
        from devicekit.testing import CannotEnable, enable
        try:
            enable()
        except CannotEnable as error:
            print(error)
        """
    )
    assert "'acme'" in out


def test_an_old_torch_is_refused_with_both_versions(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(install, "_library", None)
    monkeypatch.setattr(torch, "__version__", "2.9.1+cpu")
    before = active.replace(None)
    try:
        with pytest.raises(CannotEnable, match=r"2\.10.*2\.9\.1"):
            enable()
    finally:
        active.replace(before)


@needs_simulator
def test_the_process_ends_cleanly_with_tensors_and_work_left_over(run: Interpreter) -> None:
    out = run(
        """
        import torch
        from devicekit.testing import enable
        enable()
        kept = torch.ones(1000, device="sim")
        pending = kept.to("cpu", non_blocking=True)
        cycle = [kept]; cycle.append(cycle)
        print("end")
        """
    )
    assert out == "end"
