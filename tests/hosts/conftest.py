"""The adapters for host engines, each in a process of its own: a host keeps its choice for a process's life."""

from __future__ import annotations

import atexit
import functools
import importlib.util
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

import pytest

SIMULATED = """
from devicekit.testing import enable
from devicekit.testing.sim_backend import register
enable()
register()
"""


def installed(host: str) -> pytest.MarkDecorator:
    """Skip where a host engine is not installed, and say how it would be."""
    absent = importlib.util.find_spec(host) is None
    return pytest.mark.skipif(absent, reason=f"{host} is not installed; `make hosts` runs this with it")


@functools.cache
def _extensions() -> str:
    """Where hosts build operators: a build that was ended leaves a lock, and later ones wait for it for ever."""
    folder = tempfile.TemporaryDirectory(prefix="devicekit-hosts-")
    atexit.register(folder.cleanup)
    return folder.name


@dataclass(frozen=True)
class Process:
    """Runs code in a fresh Python on one backend."""

    backend: str

    def __call__(self, code: str, **variables: str) -> str:
        """The last line that the code prints."""
        script = (SIMULATED if self.backend == "sim" else "") + code
        return self._run(900, "-c", script, **variables).splitlines()[-1]

    def file(self, path: Path, **variables: str) -> str:
        """All that a script prints, for code that starts processes of its own."""
        return self._run(900, str(path), **variables)

    def module(self, seconds: float, *arguments: str, **variables: str) -> str:
        """All that ``python -m`` prints, which must end within ``seconds``."""
        return self._run(seconds, "-m", *arguments, **variables)

    def _run(self, seconds: float, *arguments: str, **variables: str) -> str:
        environment = {
            **os.environ,
            "DEVICEKIT_BACKEND": self.backend,
            "PYTHONWARNINGS": "ignore",
            "TORCH_EXTENSIONS_DIR": _extensions(),
            **variables,
        }
        done = subprocess.run(
            [sys.executable, *arguments], capture_output=True, text=True, env=environment, timeout=seconds
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
        return done.stdout


@pytest.fixture(params=["cpu", "sim"])
def run(request: pytest.FixtureRequest) -> Process:
    """A fresh process on the host's processor and on the simulated accelerator."""
    return Process(request.param)
