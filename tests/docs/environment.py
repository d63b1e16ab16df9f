"""A clean environment in which the lines of a page are typed, with this checkout for devicekit and no index."""

from __future__ import annotations

import os
import shlex
import subprocess
import sys
from pathlib import Path

from tests.docs.blocks import CHECKOUT

_OURS = [part for project in (".", "conformance") for part in ("-e", str(CHECKOUT / project))]
_LEAKING = ("PYTEST_", "DEVICEKIT_", "PYTHONPATH", "PIP_")


class Environment:
    """A virtual environment without an index to ask, and a folder that is empty at first.

    Args:
        folder: holds both.
        limit: seconds that one line may take.
    """

    def __init__(self, folder: Path, limit: float) -> None:
        self.scratch = folder / "scratch"
        self.scratch.mkdir()
        self._limit = limit
        self._folder = folder / "environment"
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(self._folder)], check=True)
        packages = next((self._folder / "lib").glob("python*")) / "site-packages"
        others = [entry for entry in sys.path if entry.endswith("site-packages")]
        (packages / "others.pth").write_text("\n".join(others), encoding="utf-8")
        self._environ = {
            name: value for name, value in os.environ.items() if not name.startswith(_LEAKING)
        } | {"PATH": f"{self._folder / 'bin'}{os.pathsep}{os.environ['PATH']}"}

    def run(self, command: str) -> subprocess.CompletedProcess[str]:
        """What a line does, and says."""
        return subprocess.run(
            self._arguments(command),
            cwd=self.scratch,
            env=self._environ,
            capture_output=True,
            text=True,
            timeout=self._limit,
            check=False,
        )

    def succeed(self, command: str) -> str:
        """What a line prints, which must end with status 0."""
        done = self.run(command)
        assert done.returncode == 0, f"{command}\n{done.stdout}{done.stderr}"
        return done.stdout

    def _arguments(self, command: str) -> list[str]:
        program, *rest = shlex.split(command)
        if program != "pip":
            return ["bash", "-euo", "pipefail", "-c", command]
        offline = [
            "--quiet",
            "--no-index",
            "--no-deps",
            "--no-build-isolation",
            "--disable-pip-version-check",
        ]
        assert rest[0] == "install"
        wanted = [word for word in rest[1:] if not _is_ours(word) and word != "torchvulkan"]
        ours = _OURS if any(_is_ours(word) for word in rest[1:]) else []
        python = str(self._folder / "bin" / "python")
        return [sys.executable, "-m", "pip", "--python", python, "install", *offline, *ours, *wanted]


def _is_ours(word: str) -> bool:
    return word.startswith(("devicekit[", ".[", "./"))
