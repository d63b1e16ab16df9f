"""The steps of the port, as diffs: what the audit rewrites, and what a person does after it."""

from __future__ import annotations

import difflib
import shutil
import subprocess
import sys
from pathlib import Path

FOLDER = Path(__file__).parent
STEPS = ("audit.diff", "by-hand.diff")
_CHECKOUT = FOLDER.parents[1]


def diffs(scratch: Path) -> tuple[str, str]:
    """What ``devicekit audit --fix`` makes of `before`, and what is different in `after` once that is formatted.

    Args:
        scratch: an empty folder to work in.
    """
    port = scratch / "engine"
    shutil.copytree(FOLDER / "before", port, ignore=shutil.ignore_patterns("__pycache__"))
    # Exit status 1 says that something is left to a person, as it is here.
    _run(["devicekit", "audit", str(port), "--fix"], {0, 1})
    audited = _diff(FOLDER / "before", port)
    configured = ["--quiet", "--config", str(_CHECKOUT / "pyproject.toml"), str(port)]
    _run(["ruff", "check", "--fix", "--select", "I,F401", *configured], {0})
    _run(["ruff", "format", *configured], {0})
    return audited, _diff(port, FOLDER / "after")


def _run(command: list[str], expected: set[int]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", *command], cwd=_CHECKOUT, capture_output=True, text=True, check=False
    )
    if done.returncode not in expected:
        raise RuntimeError(f"{' '.join(command)}: {done.stdout}{done.stderr}")


def _diff(old: Path, new: Path) -> str:
    lines: list[str] = []
    for path in sorted(new.glob("*.py")):
        before, after = (one.read_text(encoding="utf-8") for one in (old / path.name, path))
        lines += difflib.unified_diff(
            before.splitlines(keepends=True),
            after.splitlines(keepends=True),
            f"a/{path.name}",
            f"b/{path.name}",
        )
    return "".join(lines)
