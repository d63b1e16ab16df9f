from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import devicekit
from devicekit.contract import HOOKS
from devicekit.contract.errors import IncompatibleBackend

WHEELS = Path(__file__).parent / "wheels"
HOST = Path(devicekit.__file__).parent


def test_a_backend_frozen_at_contract_1_0_still_opens_with_all_of_its_hooks(monkeypatch):
    monkeypatch.syspath_prepend(WHEELS / "contract_1_0")
    device = devicekit.get_device("frozen")
    assert device.backend.contract.major == 1
    assert all(device.supports(hook) for hook in HOOKS if HOOKS[hook].since == "1.0")
    plugin = device.backend.plugin
    plugin.calls.clear()
    device.synchronize()
    device.create_stream(priority=-1)
    device.create_event(timing=True)
    device.set_memory_fraction(0.5)
    device.manual_seed(7)
    assert plugin.calls == [
        ("synchronize", 0),
        ("create_stream", 0, -1),
        ("create_event", 0, True),
        ("set_memory_fraction", 0, 0.5),
        ("manual_seed", 0, 7),
    ]
    assert device.memory_stats().reserved == 4
    assert device.memory_info().total == 16
    assert device.empty_cache().called


def test_a_backend_from_the_future_is_refused_with_both_versions_and_never_imported(monkeypatch):
    monkeypatch.syspath_prepend(WHEELS / "contract_2_0")
    with pytest.raises(IncompatibleBackend) as caught:
        devicekit.get_device("future")
    message = str(caught.value)
    assert "future-backend 7.0" in message
    assert "contract <3,>=2.0" in message
    assert "serves 1.0" in message
    assert message.endswith("pip install --upgrade devicekit")
    assert "future_backend" not in sys.modules


@pytest.fixture
def next_host(tmp_path: Path) -> Path:
    """This devicekit with a contract 1.1 that appends an argument, adds a hook, and requires it."""
    copy = tmp_path / "devicekit"
    shutil.copytree(HOST, copy, ignore=shutil.ignore_patterns("__pycache__"))

    def edit(file: str, old: str, new: str) -> None:
        text = (copy / file).read_text()
        assert text.count(old) == 1, old
        (copy / file).write_text(text.replace(old, new))

    edit("contract/versions.py", 'CONTRACT_VERSION = Version("1.0")', 'CONTRACT_VERSION = Version("1.1")')
    edit("contract/versions.py", "= (CONTRACT_VERSION,)", '= (CONTRACT_VERSION, Version("1.0"))')
    edit(
        "contract/hooks.py",
        """    @hook(_REQUIRED, "Ordering")
    def synchronize(self, index: int) -> None:""",
        """    @hook(_REQUIRED, "Ordering", since="1.1")
    def heartbeat(self, index: int) -> bool:
        raise NotImplementedError

    @hook(_REQUIRED, "Ordering", added={"timeout": "1.1"})
    def synchronize(self, index: int, timeout: float) -> None:""",
    )
    return tmp_path


def on_host(host: Path, script: str, *sites: Path) -> str:
    paths = [str(host), *map(str, sites), *(entry for entry in sys.path if entry)]
    done = subprocess.run(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(paths)},
        capture_output=True,
        text=True,
        cwd=host,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


OBSERVED = """
class Watch:
    @devicekit.hookimpl(wrapper=True)
    def synchronize(self, index, timeout):
        print("watched", index, timeout)
        return (yield)
device.backend.add_observer(Watch())
device.synchronize(3.0)
"""


def test_the_next_contract_serves_the_old_plugin_without_the_appended_argument(next_host):
    script = """
import devicekit
device = devicekit.get_device("frozen")
print(device.backend.contract, device.supports("heartbeat"))
device.synchronize(2.5)
print(device.backend.plugin.calls[-1])
"""
    said = on_host(next_host, script + OBSERVED, WHEELS / "contract_1_0").splitlines()
    assert said == ["1.1 False", "('synchronize', 0)", "watched 0 3.0"]


def test_the_next_contract_hands_the_appended_argument_to_a_new_plugin_and_requires_the_new_hook(next_host):
    script = """
import devicekit
from devicekit.contract import Manifest
class Old:
    @devicekit.hookimpl
    def is_available(self): return True
    @devicekit.hookimpl
    def device_count(self): return 1
    @devicekit.hookimpl
    def synchronize(self, index): print("old", index)
class New(Old):
    @devicekit.hookimpl
    def heartbeat(self, index): return True
    @devicekit.hookimpl
    def synchronize(self, index, timeout): print("new", index, timeout)
def offer(factory, name, contract):
    table = {"name": name, "device_type": "cpu", "contract": contract, "indexed": False}
    devicekit.register_backend(factory, Manifest.parse({"backend": table}))
offer(New, "new", ">=1.1,<2")
device = devicekit.get_device("new")
device.synchronize(2.5)
offer(Old, "stale", ">=1.1,<2")
try:
    devicekit.get_device("stale")
except devicekit.DeviceKitError as error:
    print("; ".join(error.problems))
"""
    said = on_host(next_host, script + OBSERVED).splitlines()
    said = [line for line in said if line]
    assert said[0] == "new 0 2.5"
    assert "the required hook heartbeat(index) is missing" in said[1]
    assert "synchronize(index) has the wrong signature: it must be synchronize(index, timeout)" in said[1]
    assert said[2:] == ["watched 0 3.0", "new 0 3.0"]
