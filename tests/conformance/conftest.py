"""What the suite's tests share: backends of their own in files, and the front doors as commands."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.conformance.lending import PROGRAM, Lender

Backend = Callable[[str], str]
Command = Callable[..., "subprocess.CompletedProcess[str]"]

SUITE = ("--pyargs", "devicekit_conformance", "-p", "no:cacheprovider")
# Plugins of our own tests, which a vendor need not have; importing them takes most of a short run.
ONLY_OURS = ("-p", "no:hypothesispytest", "-p", "no:schemathesis")

_HEAD = """
import dataclasses
import os
import time

from devicekit.contract import MemoryInfo, hookimpl
from devicekit.contract.manifest import Manifest
from devicekit_cpu import Backend as Cpu

_CPU = {"name": "mine", "device_type": "cpu", "contract": ">=1.0,<2", "collective_backend": "gloo",
        "noop": ["synchronize", "set_index"], "emulated": ["empty_cache", "memory_info"],
        "capabilities": ["driver_memory", "ipc", "rng_state", "unified_memory"], "indexed": False, "host": True}


class Mine(Cpu):
    manifest = Manifest.parse({"backend": _CPU})
"""

_KNOWN = {
    "sound": "",
    "swapped": """
    @hookimpl
    def memory_info(self, index: int) -> MemoryInfo:
        found = super().memory_info(index)
        return MemoryInfo(found.total, found.free, "os")
""",
    "hanging": """
    @hookimpl
    def synchronize(self, index: int) -> None:
        time.sleep(3600)
""",
    "crashing": """
    @hookimpl
    def synchronize(self, index: int) -> None:
        os.abort()
""",
    "absent": """
    @hookimpl
    def is_available(self) -> bool:
        return False

    @hookimpl
    def device_count(self) -> int:
        return 0
""",
}


@pytest.fixture
def backend(tmp_path: Path) -> Backend:
    """Writes the cpu's backend into a file, with a known fault or a class body; returns its address."""

    def write(fault: str) -> str:
        path = tmp_path / "mine.py"
        path.write_text(_HEAD + _KNOWN.get(fault, fault), encoding="utf-8")
        return f"{path}:Mine"

    return write


@pytest.fixture(scope="session")
def nursery() -> Iterator[Lender]:
    with Lender() as one:
        yield one


@pytest.fixture(scope="session")
def command(nursery: Lender) -> Command:
    """Runs a front door in a process of its own, as a user would, but for the fork server, which is ``nursery``.

    Those of ``as_a_user`` have one of their own.
    """

    def run(
        *arguments: str | Path, folder: Path, module: str = "devicekit.cli", as_a_user: bool = False
    ) -> subprocess.CompletedProcess[str]:
        telling = ("PYTEST_", "DEVICEKIT_")
        environ = {name: value for name, value in os.environ.items() if not name.startswith(telling)}
        lent = nursery.descriptor
        program = ["-m", module] if as_a_user else [PROGRAM, str(lent), module]
        return subprocess.run(
            [sys.executable, *program, *map(str, arguments)],
            pass_fds=() if as_a_user else (lent,),
            cwd=folder,
            env=environ,
            capture_output=True,
            text=True,
            timeout=600,
            check=False,
        )

    return run
