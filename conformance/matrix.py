"""Runs the suite from built wheels, in clean environments, on every supported pluggy and pytest.

``python conformance/matrix.py --markdown docs/results/conformance-matrix.md``. Each environment gets the wheels
of devicekit, the suite, the six backends and one fresh from ``devicekit new-backend``; torch, which is large, lies
in one folder that all of them see. In the last environment each vendor's backend is judged as well, over the
double of its vendor's module, which is copied beside: nothing is imported from the checkout.
"""

from __future__ import annotations

import argparse
import itertools
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PLUGGY = ("1.5", "1.6", "1.7")
PYTEST = ("7.4", "8", "9")
SHARED = ("torch", "numpy")
VENDORS = ("cuda", "rocm", "xpu", "npu", "musa")
PROJECTS = (".", "conformance", *(f"plugins/{name}" for name in ("cpu", *VENDORS)))
VERSIONS = (
    "from importlib.metadata import version; "
    "print(*map(version, ('pluggy', 'pytest', 'torch', 'devicekit', 'devicekit-conformance')))"
)
SUBCLASS = """from devicekit.conformance import BackendConformance


class TestCpu(BackendConformance):
    backend = "cpu"
"""
# Every profile by one door at least; what another adds shows on one profile as well.
DOORS = {
    "command": "devicekit conformance run --backend cpu --quiet",
    "pytest": "pytest -q --pyargs devicekit_conformance --backend cpu --devicekit-profile core",
    "subclass": "pytest -q test_cpu.py --devicekit-profile core",
    "new backend": "devicekit conformance run --backend acme --quiet --profile core",
}
# A double computes nothing, so some requirements stay undecided; none may fail.
OVER_DOUBLE = (
    "devicekit conformance run --backend tests.doubles.judged:VENDOR --probe tests.doubles.judged:DoubleProbe "
    "--quiet --profile core --profile memory --allow-incomplete"
)
Outcome = tuple[bool, float]  # whether it was green, and the seconds it took


@dataclass(frozen=True)
class Cell:
    """One environment: what was installed, and how each door ended."""

    versions: dict[str, str]
    outcomes: dict[str, Outcome]  # by door

    @property
    def green(self) -> bool:
        return all(good for good, _ in self.outcomes.values())


def main(argv: Sequence[str] | None = None) -> int:
    """Run the matrix and print it as a table; 0 when every door is green in every environment."""
    parser = argparse.ArgumentParser(prog="conformance/matrix.py", description=__doc__)
    parser.add_argument("--shared", type=Path, help="a folder that has torch and numpy already")
    parser.add_argument(
        "--offline-builds", action="store_true", help="build with the hatchling that is installed"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the table as a page to commit")
    arguments = parser.parse_args(argv)
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        shared = arguments.shared or _install_shared(folder / "shared")
        wheels = _build(folder, arguments.offline_builds, shared)
        cells = []
        for number, (pluggy, pytest) in enumerate(itertools.product(PLUGGY, PYTEST)):
            cells.append(_run_cell(folder / str(number), wheels, shared.resolve(), pluggy, pytest))
            print(_row(cells[-1]), flush=True)
        vendors = _judge_vendors(folder / str(number))
        print(_outcomes(vendors), flush=True)
    if arguments.markdown:
        arguments.markdown.parent.mkdir(parents=True, exist_ok=True)
        arguments.markdown.write_text(_page(cells, vendors), encoding="utf-8")
    return 0 if all(cell.green for cell in cells) and all(good for good, _ in vendors.values()) else 1


def _install_shared(folder: Path) -> Path:
    _pip("install", "--target", folder, "-c", ROOT / "constraints.txt", *SHARED)
    return folder


def _build(folder: Path, offline: bool, shared: Path) -> Path:
    """Wheels of this checkout and of a backend that its command writes."""
    wheels = folder / "wheels"
    new = folder / "devicekit-acme"
    path = os.pathsep.join([str(ROOT), str(shared), *(entry for entry in sys.path if entry)])
    subprocess.run(
        [sys.executable, "-m", "devicekit.cli", "new-backend", "acme", "--output", str(new)],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.DEVNULL,
        check=True,
    )
    isolation = ["--no-build-isolation"] if offline else []
    projects = [*(ROOT / project for project in PROJECTS), new]
    _pip("wheel", "--no-deps", *isolation, "--wheel-dir", wheels, *projects)
    return wheels


def _run_cell(folder: Path, wheels: Path, shared: Path, pluggy: str, pytest: str) -> Cell:
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(folder)], check=True)
    python = folder / "bin" / "python"
    (_site(folder) / "shared.pth").write_text(f"{shared}\n", encoding="utf-8")
    wanted: list[str | Path] = [f"pluggy=={pluggy}.*", f"pytest=={pytest}.*", *sorted(wheels.glob("*.whl"))]
    _pip("--python", python, "install", *wanted)
    empty = folder / "empty"
    empty.mkdir()
    (empty / "test_cpu.py").write_text(SUBCLASS, encoding="utf-8")
    told = subprocess.run([python, "-c", VERSIONS], cwd=empty, capture_output=True, text=True, check=True)
    names = ("pluggy", "pytest", "torch", "devicekit", "suite")
    versions = dict(zip(names, told.stdout.split(), strict=True))
    return Cell(versions, {door: _knock(command, folder, empty) for door, command in DOORS.items()})


def _site(environment: Path) -> Path:
    return next((environment / "lib").glob("python*")) / "site-packages"


def _judge_vendors(environment: Path) -> dict[str, Outcome]:
    """Each vendor's installed backend over its double."""
    folder = environment / "vendors"
    shutil.copytree(ROOT / "tests" / "doubles", folder / "tests" / "doubles")
    (_site(environment) / "vendors.pth").write_text(f"{folder}\n", encoding="utf-8")
    return {name: _knock(OVER_DOUBLE.replace("VENDOR", name), environment, folder) for name in VENDORS}


def _knock(command: str, environment: Path, folder: Path) -> Outcome:
    program, *rest = shlex.split(command)
    outside = ("PYTEST_", "DEVICEKIT_", "PYTHONPATH")
    environ = {name: value for name, value in os.environ.items() if not name.startswith(outside)}
    started = time.perf_counter()
    done = subprocess.run(
        [environment / "bin" / program, *rest],
        cwd=folder,
        env=environ,
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        print(f"$ {command}\n{done.stdout[-3000:]}{done.stderr[-3000:]}", file=sys.stderr)
    return done.returncode == 0, time.perf_counter() - started


def _pip(*arguments: str | Path) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check", *map(str, arguments)]
    subprocess.run(command, check=True)


def _row(cell: Cell) -> str:
    return f"| {cell.versions['pluggy']} | {cell.versions['pytest']} {_outcomes(cell.outcomes)}"


def _outcomes(outcomes: Mapping[str, Outcome]) -> str:
    shown = [f"{'green' if good else '**red**'}, {seconds:.0f} s" for good, seconds in outcomes.values()]
    return f"| {' | '.join(shown)} |"


def _page(cells: Sequence[Cell], vendors: Mapping[str, Outcome]) -> str:
    first, last = cells[0].versions, cells[-1].versions
    lines = [
        "# The suite from wheels",
        "",
        "Written by `make matrix`: the suite as users install it, in one clean environment for each row.",
        f"devicekit {first['devicekit']}, devicekit-conformance {first['suite']}, torch {first['torch']},",
        f"Python {platform.python_version()}, {platform.machine()}. Seconds beside other work.",
        "",
        *(f"- {door}: `{command}`" for door, command in DOORS.items()),
        "",
        f"| pluggy | pytest | {' | '.join(DOORS)} |",
        "|---|---|" + "---|" * len(DOORS),
        *map(_row, cells),
        "",
        "The vendors' backends over doubles of their modules,",
        f"with pluggy {last['pluggy']} and pytest {last['pytest']}: `{OVER_DOUBLE}`.",
        "A double computes nothing, so not every requirement is decided; none fails.",
        "",
        f"| {' | '.join(vendors)} |",
        "|" + "---|" * len(vendors),
        _outcomes(vendors),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
