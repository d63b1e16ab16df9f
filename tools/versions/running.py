"""One column: its environment, and the suite in it."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
import time
from collections.abc import Sequence
from datetime import datetime, timezone
from pathlib import Path

from tools.environments import ROOT, Blocked, create, install, outside, revision_of_checkout
from tools.versions.columns import SHORT, Column
from tools.versions.record import Counts, Run

_PACKAGES = ("torch", "transformers", "numpy", "pluggy", "pytest")
_ASK = f"""
import json, platform
from importlib.metadata import version
print(json.dumps([platform.python_version(), {{name: version(name) for name in {_PACKAGES!r}}}]))
"""


def run(column: Column, folder: Path, *, form: str, workers: int, paths: Sequence[str] = ()) -> Run:
    """Make the column's environment in ``folder`` if it is not there, and run the suite in it.

    ``paths`` replace those of the form.
    """
    started = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    revision = revision_of_checkout()
    try:
        python = environment(column, folder / column.name)
    except Blocked as why:
        return Run(column.name, form, started, revision, blocked=str(why))
    version, packages = json.loads(_output([str(python), "-c", _ASK]))
    begun = time.monotonic()
    chosen = paths or (SHORT if form == "short" else ())
    counts = _test(python, chosen, workers)
    return Run(column.name, form, started, revision, version, packages, counts, time.monotonic() - begun)


def environment(column: Column, folder: Path) -> Path:
    """The column's interpreter, with everything installed.

    Raises:
        Blocked: there is no such Python here, or no such packages.
    """
    ready = folder / ".ready"
    if ready.is_file() and ready.read_text(encoding="utf-8") == _recipe(column):
        return folder / "bin" / "python"
    shutil.rmtree(folder, ignore_errors=True)
    python = create(folder, column.python)
    with tempfile.TemporaryDirectory() as scratch:
        constraints = Path(scratch) / "constraints.txt"
        constraints.write_text(column.constraints, encoding="utf-8")
        lowest = ["--resolution", "lowest-direct"] if column.lowest else []
        install(python, *lowest, "-c", str(constraints), "-r", "requirements-dev.txt")
    ready.write_text(_recipe(column), encoding="utf-8")
    return python


def _recipe(column: Column) -> str:
    """What the environment was made from: another recipe is another environment."""
    projects = sorted(
        [*ROOT.glob("pyproject.toml"), *ROOT.glob("*/pyproject.toml"), *ROOT.glob("plugins/*/pyproject.toml")]
    )
    texts = [(ROOT / "requirements-dev.txt").read_text(encoding="utf-8")]
    texts += [_requirements(one.read_text(encoding="utf-8")) for one in projects]
    return "\n".join([column.python, str(column.lowest), column.constraints, *texts])


def _requirements(project: str) -> str:
    return project.partition("[tool.")[0]


def _test(python: Path, paths: Sequence[str], workers: int) -> Counts:
    first = _pytest(python, ["-n", str(workers), "--dist", "loadfile", *paths])
    if not first.failed + first.errors:
        return first
    again = _pytest(python, ["--last-failed", "--last-failed-no-failures", "none", *paths])
    passed = first.passed + first.failed + first.errors - again.failed - again.errors
    return Counts(passed, again.failed, again.errors, first.skipped, again.failures, first.left_out)


def _pytest(python: Path, arguments: Sequence[str]) -> Counts:
    with tempfile.TemporaryDirectory() as scratch:
        junit = Path(scratch) / "junit.xml"
        cache = python.parents[1] / "pytest-cache"
        command = [str(python), "-m", "pytest", "-q", f"--junitxml={junit}", "-o", f"cache_dir={cache}"]
        subprocess.run([*command, *arguments], cwd=ROOT, env=outside(), check=False)
        return (
            Counts.of(junit) if junit.is_file() else Counts(errors=1, failures=("the suite did not start",))
        )


def _output(command: Sequence[str]) -> str:
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout
