"""What importing costs, and what is said when a package is missing. Each case is a process of its own."""

from __future__ import annotations

import subprocess
import sys

import pytest

HIDE = """
import sys
class Hide:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Hide())
"""


def run(code: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=300)


def test_devicekit_and_its_pools_do_not_import_transformers():
    code = "import sys, devicekit, devicekit.memory.kv, devicekit.memory.sizing, devicekit.runners.errors"
    found = run(
        f"{code}; print([m for m in ('transformers', 'tokenizers', 'safetensors') if m in sys.modules])"
    )
    assert (found.returncode, found.stdout) == (0, "[]\n"), found.stderr


@pytest.mark.parametrize("package", ["numpy", "transformers", "safetensors"])
def test_a_missing_package_is_named_with_the_command_that_installs_it(package):
    attempts = """
import importlib
for module in ("transformers_runner", "probe", "checkpoint"):
    try:
        importlib.import_module(f"devicekit.runners.{module}")
    except Exception as error:
        print(type(error).__name__, error)
"""
    found = run(HIDE.format(name=package) + attempts)
    lines = found.stdout.splitlines()
    assert len(lines) == 3, found.stderr
    for line in lines:
        assert line.startswith("MissingDependency")
        assert package in line
        assert "pip install 'devicekit[transformers]'" in line
