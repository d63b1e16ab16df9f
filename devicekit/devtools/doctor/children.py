"""Runs an examination in a process of its own, so that nothing it finds can harm the one that asks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping

_PROGRAM = "import sys; from devicekit.devtools.doctor.examine import main; main(sys.argv[1:])"
AUTOLOAD_SWITCH = "TORCH_DEVICE_BACKEND_AUTOLOAD"


def examine(
    what: str, name: str = "", *, autoload: bool = True, timeout: float = 120.0
) -> Mapping[str, object]:
    """What the examination found: ``ok``, ``seconds``, and either facts or ``error``.

    Args:
        autoload: False forbids torch to load vendors' extensions when it is imported.
        timeout: seconds after which the process is killed.
    """
    # The same packages as here, wherever this process has them from.
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    if not autoload:
        environ[AUTOLOAD_SWITCH] = "0"
    command = [sys.executable, "-c", _PROGRAM, what, name]
    try:
        done = subprocess.run(command, env=environ, capture_output=True, timeout=timeout, check=False)
    except subprocess.TimeoutExpired:
        return _failure(f"did not finish within {timeout:g} s")
    output = done.stdout.decode(errors="replace").strip()
    try:
        found: object = json.loads(output.rpartition("\n")[2])
    except ValueError:
        found = None
    if done.returncode == 0 and isinstance(found, dict):
        return found
    said = done.stderr.decode(errors="replace").strip().rpartition("\n")[2]
    ending = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    return _failure(f"the process ended with {ending}" + (f": {said}" if said else ""))


def _failure(error: str) -> Mapping[str, object]:
    return {"ok": False, "error": error, "kind": "Process", "seconds": None}
