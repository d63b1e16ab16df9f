"""Asks a Python that has imported nothing yet, where what this process has imported would be in the way."""

from __future__ import annotations

import json
import os
import subprocess
import sys


class NoAnswer(RuntimeError):
    """The other Python failed, or gave no answer in time; the text is what it said last."""


def ask_fresh_python(code: str, *arguments: str, seconds: float) -> object:
    """The JSON that ``code`` prints as its last line. It finds modules where this process does.

    Raises:
        NoAnswer: it failed, printed nothing, or took more than ``seconds``.
    """
    path = [*filter(None, sys.path), *filter(None, [os.environ.get("PYTHONPATH")])]
    try:
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            timeout=seconds,
            check=False,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(path)},
        )
    except subprocess.TimeoutExpired:
        raise NoAnswer(f"no answer within {seconds:g} s") from None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        *_, said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise NoAnswer(said)
    return json.loads(lines[-1])
