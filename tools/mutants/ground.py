"""Where mutants live: a copy of the checkout, and processes forked from one that has loaded everything heavy."""

from __future__ import annotations

import contextlib
import importlib
import json
import math
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
_HEAVY = (
    "torch",
    "numpy",
    "pytest",
    "hypothesis",
    "pydantic",
    "starlette",
    "httpx",
    "uvicorn",
    "transformers",
)
OUTPUT = "mutants-output.txt"
"""In the copy: what the last run of pytest printed."""

# What is loaded before the fork has no assertions that anybody reads.
_OPTIONS = ("-q", "-p", "no:cacheprovider", "-W", "ignore::pytest.PytestAssertRewriteWarning")
_LOOK = 0.02  # seconds


def load() -> None:
    """Import what every test needs and no mutant changes. Nothing of the product: that is read anew each time."""
    for name in _HEAVY:
        with contextlib.suppress(ImportError):
            importlib.import_module(name)


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of what the repository holds now, uncommitted changes included."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT, check=True, capture_output=True,
    ).stdout  # fmt: skip
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        for name in filter(None, listed.decode().split("\0")):
            if (ROOT / name).is_file():
                target = Path(folder, name)
                target.parent.mkdir(parents=True, exist_ok=True)
                shutil.copy2(ROOT / name, target)
        yield Path(folder).resolve()


@contextmanager
def changed(file: Path, text: str) -> Iterator[None]:
    """A file with another content for a while."""
    before = file.read_bytes()
    stale = list((file.parent / "__pycache__").glob(f"{file.stem}.*.pyc"))
    for one in stale:
        one.unlink()
    file.write_text(text, encoding="utf-8")
    try:
        yield
    finally:
        file.write_bytes(before)


def forked(
    folder: Path, arguments: Sequence[str], seconds: float | None, plugin: object = None
) -> int | None:
    """Run pytest in a process of its own, in ``folder``; its status, or ``None`` where it did not end in time."""

    def run() -> int:
        os.chdir(folder)
        sys.dont_write_bytecode = True
        sys.path[:] = [str(folder), *(one for one in sys.path if one not in ("", str(ROOT)))]
        for name in [one for one in sys.modules if one.partition(".")[0] in ("tests", "tools", "devicekit")]:
            del sys.modules[name]
        output = os.open(OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(output, 1)
        os.dup2(output, 2)
        import pytest

        return int(pytest.main([*_OPTIONS, *arguments], [] if plugin is None else [plugin]))

    return fork(run, seconds)


def fork(work: Callable[[], int], seconds: float | None) -> int | None:
    """Do work in a process of its own; its status, or ``None`` where it did not end in time.

    Whatever that process started ends with it.
    """
    process = os.fork()
    if process == 0:
        status = 70
        try:
            os.setsid()
            os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
            status = work()
        except BaseException:  # nothing of this process may go on in the one it was forked from
            traceback.print_exc()
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)
    return _ended(process, math.inf if seconds is None else seconds)


def _ended(process: int, seconds: float) -> int | None:
    deadline = time.monotonic() + seconds
    try:
        while time.monotonic() < deadline:
            pid, status = os.waitpid(process, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(_LOOK)
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
        return None
    finally:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process, signal.SIGKILL)  # and everything that it started


def read(path: Path) -> dict[str, object]:
    """A JSON object that a forked process left."""
    found: dict[str, object] = json.loads(path.read_text(encoding="utf-8"))
    return found
