"""Programs of Python without the seconds that each spends on importing torch.

`Warm` is an interpreter that has imported what other people wrote, and nothing of devicekit. A command that begins
with `Warm.python` in place of an interpreter is forked from it. Between the two stands a `relay`, the process that
is seen: what it is sent goes on to the program, and it ends as the program does. It is nothing for what depends
on the order of imports, on options of the interpreter, or on being stopped or killed at once.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

_HERE = Path(__file__).parent


class Warm:
    """Started when first used; ends with its block, and everything that was started from it with it.

    Args:
        folder: where it may make a socket.
        imports: modules to import before any program asks for them; those that are missing are left out.
        interpreter: of the environment that programs run in; default: this one.
    """

    def __init__(self, folder: Path, imports: Sequence[str], interpreter: str = sys.executable) -> None:
        self._folder = folder
        self._socket = folder / "warm"
        self._imports = imports
        self._interpreter = interpreter
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def python(self) -> list[str]:
        """What stands for an interpreter before ``-m``, ``-c`` or a file."""
        if self._process is None:
            self.start()
        return [self._interpreter, "-S", "-E", str(_HERE / "relay.py"), str(self._socket)]

    @property
    def interpreter(self) -> str:
        """The same as one file, for what takes the path of an interpreter."""
        path = self._folder / "python"
        if not path.exists():
            path.write_text(f'#!/bin/sh\nexec {shlex.join(self.python)} "$@"\n', encoding="utf-8")
            path.chmod(0o755)
        return str(path)

    def start(self, environment: Mapping[str, str] | None = None) -> None:
        """Start now, in an environment of its own."""
        command = [self._interpreter, str(_HERE / "forking.py"), str(self._socket), *self._imports]
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
        )
        assert self._process.stdout is not None
        if self._process.stdout.readline() != b"ready\n":
            raise RuntimeError(f"{self._interpreter} cannot import {', '.join(self._imports)}")

    def __enter__(self) -> Warm:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.communicate(timeout=60)  # closes its input, which ends it
