"""SGLang's and vLLM's platforms through their own discovery, and that installing them activates nothing."""

from __future__ import annotations

import pytest

import devicekit_sglang
import devicekit_vllm
from tests.hosts.conftest import Process, installed

SGLANG = """
import torch, devicekit
from sglang.srt.platforms import current_platform as platform
device = devicekit.get_device()
assert type(platform).__name__ == "DevicekitPlatform"
assert platform.device_type == device.torch_device.type
assert platform.get_available_memory()[1] == device.memory_info().total
assert platform.is_pin_memory_available() == device.supports("pin_memory")
platform.synchronize()
platform.empty_cache()
platform.set_device(device.torch_device)
print(platform.is_cpu(), platform.is_out_of_tree())
"""

VLLM = """
import torch, devicekit
from vllm.platforms import current_platform as platform
device = devicekit.get_device()
assert type(platform).__name__ == "DevicekitPlatform"
assert platform.get_device_name() == device.properties().name
platform.synchronize()
platform.empty_cache()
print(platform.is_cpu(), platform.is_out_of_tree())
"""


@installed("sglang")
def test_sglang_resolves_and_uses_the_platform(run: Process) -> None:
    said = run(SGLANG, SGLANG_PLATFORM="devicekit")
    assert said == ("True False" if run.backend == "cpu" else "False True")


@installed("vllm")
def test_vllm_resolves_and_uses_the_platform(run: Process) -> None:
    said = run(VLLM, VLLM_PLUGINS="devicekit")
    assert said == ("True False" if run.backend == "cpu" else "False True")


@pytest.mark.parametrize(
    ("variable", "plugin"), [("SGLANG_PLATFORM", devicekit_sglang), ("VLLM_PLUGINS", devicekit_vllm)]
)
def test_installing_activates_nothing(monkeypatch: pytest.MonkeyPatch, variable: str, plugin) -> None:
    for value in (None, "", "other", "devicekit_too"):
        monkeypatch.delenv(variable, raising=False)
        if value is not None:
            monkeypatch.setenv(variable, value)
        assert plugin.activate() is None
    monkeypatch.setenv(variable, "devicekit")
    assert plugin.activate().endswith(".DevicekitPlatform")
