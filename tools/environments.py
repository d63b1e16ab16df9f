"""Clean virtual environments, made by uv: seconds where its cache is warm, and it knows a lowest-direct mode."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


class Blocked(Exception):
    """It cannot be done on this machine; the text is what uv said."""


def create(folder: Path, python: str) -> Path:
    """An empty environment of the Python named so (``3.12``, or a path); its interpreter.

    Raises:
        Blocked: there is no such Python here.
    """
    uv("venv", "--quiet", "--python", python, str(folder))
    return folder / "bin" / "python"


def install(python: Path, *arguments: str) -> None:
    """``uv pip install`` into the environment of ``python``.

    Raises:
        Blocked: there are no such packages.
    """
    uv("pip", "install", "--quiet", "--python", str(python), *arguments)


def uv(*arguments: str) -> str:
    """Run uv in the checkout; what it printed.

    Raises:
        Blocked: it ended with an error.
    """
    done = subprocess.run(
        [sys.executable, "-m", "uv", *arguments], cwd=ROOT, capture_output=True, text=True, check=False
    )
    if done.returncode:
        said = " ".join(line.strip() for line in done.stderr.splitlines() if line.strip())
        raise Blocked(said[:300] or f"uv {arguments[0]} ended with {done.returncode}")
    return done.stdout


def outside() -> Mapping[str, str]:
    """This process's variables without those that would reach into the environment."""
    dropped = ("PYTHONPATH", "PYTEST_", "DEVICEKIT_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    return {**kept, "HF_HUB_OFFLINE": "1"}


def revision_of_checkout() -> str:
    """Of the checkout, with "+" behind it if it was changed since."""
    done = subprocess.run(
        ["git", "describe", "--always", "--dirty=+"], cwd=ROOT, capture_output=True, text=True, check=False
    )
    return done.stdout.strip() or "unknown"
