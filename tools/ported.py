"""``python -m tools.ported``: runs the fixer on real projects, and their own tests on the host before and after.

The sources come from the package index into a folder that is thrown away; nothing of them is kept but the figures.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from devicekit.devtools.audit import Mended, mend

_SECONDS = 3600.0  # for one project's tests
# What the projects import besides torch and pytest; without dependencies, so that none brings a torch of its own.
_NEEDS = (
    "cloudpickle", "jaxtyping", "joblib", "linear_operator", "narwhals", "scikit-learn", "scipy", "tabulate",
    "threadpoolctl", "wadler-lindig",
)  # fmt: skip

_IMPORT = """
import contextlib, importlib, sys
imported = []
for name in sys.argv[1:]:
    with contextlib.suppress(Exception, SystemExit), contextlib.redirect_stdout(sys.stderr):
        importlib.import_module(name)
        imported.append(name)
print(end=" ".join(imported))
"""


@dataclass(frozen=True, slots=True)
class Project:
    """One project with its tests in its source distribution."""

    name: str
    version: str
    tests: tuple[str, ...]  # those that import what is rewritten, or are rewritten themselves


PROJECTS = (
    Project(
        "gpytorch", "1.15.2",
        ("test/distributions", "test/kernels/test_rbf_kernel.py", "test/kernels/test_matern_kernel.py"),
    ),
    Project(
        "pytorch-ignite", "0.5.5",
        ("tests/ignite/distributed/test_auto.py", "tests/ignite/distributed/comp_models/test_base.py",
         "tests/ignite/distributed/utils/test_serial.py"),
    ),
    Project(
        "skorch", "1.4.0",
        ("skorch/tests/test_utils.py", "skorch/tests/test_dataset.py", "skorch/tests/test_toy.py"),
    ),
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Result:
    """What became of one project."""

    project: Project
    mended: Mended
    imported: tuple[frozenset[str], frozenset[str]]  # rewritten modules that could be, before and after
    before: Mapping[str, str]  # outcomes, by test
    after: Mapping[str, str]

    @property
    def same(self) -> bool:
        """Whether all that was imported and passed before still is and does."""
        kept = all(self.after.get(name) == "passed" for name, how in self.before.items() if how == "passed")
        return kept and self.imported[0] == self.imported[1] and "passed" in self.before.values()


def main(arguments: Sequence[str] | None = None) -> int:
    """Run every project; exit status 1 if one lost a test or an import."""
    parser = argparse.ArgumentParser(prog="python -m tools.ported")
    parser.add_argument("--markdown", type=Path, help="file to write the figures to")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="devicekit-ported-") as folder:
        needs = Path(folder, "needs")
        _pip("install", "--no-deps", "--target", str(needs), *_NEEDS)
        results = [_try(one, Path(folder), needs) for one in PROJECTS]
    page = render(results)
    print(page)
    if given.markdown is not None:
        given.markdown.write_text(page, encoding="utf-8")
    return 0 if all(one.same for one in results) else 1


def render(results: Sequence[Result]) -> str:
    """The figures as a page."""
    lines = [
        "# Real projects, before and after `audit --fix`", "",
        "`make ported` takes these sources from the package index, runs `devicekit audit --fix` on a copy of",
        "each, imports every rewritten module, and runs the projects' own tests, before and",
        "after, on the host's processor.", "",
        f"Run on {date.today()}, Python {sys.version.split()[0]}, torch {version('torch')}.", "",
        "| project | rewritten | left | modules imported before, after | tests before | after | same |",
        "|---|---:|---:|---:|---|---|---|",
    ]  # fmt: skip
    lines += [
        f"| {one.project.name} {one.project.version} | {one.mended.edits} in {one.mended.files} files "
        f"| {len(one.mended.left)} | {len(one.imported[0])}, {len(one.imported[1])} | {_counted(one.before)} "
        f"| {_counted(one.after)} | {'yes' if one.same else 'no'} |"
        for one in results
    ]
    lines += [
        "",
        "The tests are those that are rewritten themselves, or import what is, and need no other package:",
        "",
    ]
    lines += [f"- {one.project.name}: {', '.join(f'`{at}`' for at in one.project.tests)}" for one in results]
    return "\n".join(lines) + "\n"


def _try(project: Project, folder: Path, needs: Path) -> Result:
    archives = folder / project.name
    _pip(
        "download", "--no-deps", "--no-binary", ":all:", "--dest", str(archives),
        f"{project.name}=={project.version}",
    )  # fmt: skip
    [archive] = archives.glob("*.tar.gz")
    with tarfile.open(archive) as opened:
        opened.extractall(archives, filter="data")
    [before] = [one for one in archives.iterdir() if one.is_dir()]
    after = archives / "after"
    shutil.copytree(before, after)
    mended = mend([after])
    changed = [
        one.relative_to(after)
        for one in sorted(after.rglob("*.py"))
        if one.read_bytes() != (before / one.relative_to(after)).read_bytes()
    ]
    modules = [one for one in changed if (before / one.parts[0] / "__init__.py").is_file()]
    imported = _imports(before, modules, needs), _imports(after, modules, needs)
    return Result(
        project,
        mended,
        (imported[0], imported[1]),
        _test(before, project, needs),
        _test(after, project, needs),
    )


def _imports(tree: Path, modules: Sequence[Path], needs: Path) -> frozenset[str]:
    """Which of some modules can be imported."""
    names = [".".join(one.with_suffix("").parts).removesuffix(".__init__") for one in modules]
    done = _python(tree, needs, "-c", _IMPORT, *names)
    return frozenset(done.stdout.split("\n")[-1].split()) if done.returncode == 0 else frozenset()


def _test(tree: Path, project: Project, needs: Path) -> dict[str, str]:
    """The outcome of each test: passed, failed, error or skipped."""
    report = tree.parent / f"{tree.name}.xml"
    _python(
        tree,
        needs,
        "-m",
        "pytest",
        "-q",
        "-p",
        "no:cacheprovider",
        "-o",
        "addopts=",
        f"--junitxml={report}",
        *project.tests,
    )
    found = {}
    for case in ElementTree.parse(report).getroot().iter("testcase"):
        bad = next((one.tag for one in case if one.tag in ("failure", "error", "skipped")), "passed")
        found[f"{case.get('classname')}::{case.get('name')}"] = bad
    return found


def _python(tree: Path, needs: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {
        **os.environ, "PYTHONPATH": f"{tree}{os.pathsep}{needs}",
        "DEVICEKIT_BACKEND": "cpu", "PYTHONWARNINGS": "ignore",
    }  # fmt: skip
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=tree,
        env=environment,
        timeout=_SECONDS,
        capture_output=True,
        text=True,
    )


def _pip(*arguments: str) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *arguments]
    subprocess.run(command, check=True, timeout=_SECONDS)


def _counted(outcomes: Mapping[str, str]) -> str:
    counts = Counter(outcomes.values())
    return ", ".join(
        f"{counts[one]} {one}" for one in ("passed", "skipped", "failure", "error") if counts[one]
    )


if __name__ == "__main__":
    sys.exit(main())
