"""``python -m tools.mutants``: judge mutants, and write the page with the score."""

from __future__ import annotations

import argparse
import compileall
import json
import random
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from tools.mutants import ground
from tools.mutants.covering import Coverage, Covering
from tools.mutants.equivalent import EQUIVALENT
from tools.mutants.operators import Mutant, mutants
from tools.mutants.page import NOT_JUDGED, page

AREAS: dict[str, tuple[str, ...]] = {
    "scheduler": ("devicekit/scheduling/*.py", "devicekit/scheduling/verbs/*.py"),
    "pools": ("devicekit/memory/*.py", "devicekit/scheduling/kv_cache/*.py"),
    "weights": ("devicekit/weights/*.py",),
    "server access": tuple(
        f"devicekit/server/{name}.py"
        for name in ("keys", "origins", "paths", "endpoints", "bodies", "fields")
    ),
    "registry": ("devicekit/registry/*.py",),
}
TESTS = (
    *("tests/scheduling", "tests/memory", "tests/weights", "tests/registry"),
    *(
        f"tests/server/test_{name}.py"
        for name in ("access", "origins", "budgets", "fields", "fuzz", "hostile")
    ),
    *(f"tests/test_{name}.py" for name in ("engine", "generation", "logprobs", "oom")),
)
# Processes by the dozen, which cost minutes and are not followed.
_LEFT_OUT = ("tests/scheduling/test_ranks*.py", "tests/registry/wheels*")
_FACTOR, _GRACE = 4.0, 15.0  # a mutant may take this many times as long as the tests did, and so many seconds


@dataclass
class Row:
    """One mutant, judged."""

    area: str
    name: str
    line: int
    outcome: str  # "killed", "hung", "survived", "not reached", or `NOT_JUDGED`
    tests: int
    seconds: float


class _Noted(Covering, ground.Leaves):
    def __init__(self, folder: Path, file: Path) -> None:
        super().__init__(str(folder))
        self._file = file

    def leave(self) -> None:
        called = {
            test: sorted(functions) for test, functions in self.called.items() if test not in self.failed
        }
        self._file.write_text(json.dumps({"called": called, "seconds": self.seconds}), encoding="utf-8")


def main(argv: Sequence[str] | None = None) -> int:
    """Judge mutants; 0 if all that are not explained were killed."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the sample; default: %(default)s")
    parser.add_argument("--count", type=int, help="mutants to judge; default: all")
    parser.add_argument("--area", choices=AREAS, action="append", help="default: every area")
    parser.add_argument(
        "--budget", type=float, default=20.0, help="seconds of tests for each; default: %(default)g"
    )
    parser.add_argument("--only", help="mutants whose name contains this")
    parser.add_argument(
        "--map", type=Path, help="where to keep which tests call what; default: measured anew"
    )
    parser.add_argument("--json", type=Path, help="where to keep what was judged, from which a run goes on")
    parser.add_argument("--markdown", type=Path, help="the page to write")
    options = parser.parse_args(argv)
    ground.load()
    with ground.copied() as folder:
        compileall.compile_dir(str(folder / "devicekit"), quiet=2)
        compileall.compile_dir(str(folder / "tests"), quiet=2)
        chosen, total = _chosen(options)
        coverage = _coverage(folder, options.map)
        rows = _judged(folder, chosen, coverage, options)
    survivors = [
        row for row in rows if row.outcome in ("survived", "not reached") and row.name not in EQUIVALENT
    ]
    for row in survivors:
        print(f"{row.outcome}: line {row.line}: {row.name}")
    if options.markdown:
        options.markdown.write_text(
            page([asdict(row) for row in rows], total, options.seed), encoding="utf-8"
        )
    judged = sum(row.outcome != NOT_JUDGED for row in rows)
    print(f"{judged - len(survivors)} of {judged} killed or explained (seed {options.seed}, {total} in all)")
    return 1 if survivors else 0


def _chosen(options: argparse.Namespace) -> tuple[list[tuple[str, Mutant]], int]:
    every: list[tuple[str, Mutant]] = []
    for area in options.area or AREAS:
        for pattern in AREAS[area]:
            for path in sorted(ground.ROOT.glob(pattern)):
                name = path.relative_to(ground.ROOT).as_posix()
                every += [(area, one) for one in mutants(name, path.read_text(encoding="utf-8"))]
    total = len(every)
    if options.only:
        every = [one for one in every if options.only in one[1].name]
    random.Random(options.seed).shuffle(every)
    return every[: options.count], total


def _coverage(folder: Path, kept: Path | None) -> Coverage:
    if kept is None or not kept.is_file():
        file = kept or folder / "covering.json"
        arguments = [*TESTS, *(f"--ignore-glob={one}" for one in _LEFT_OUT)]
        began = time.monotonic()
        ground.forked(folder, arguments, 3600, lambda: [_Noted(folder, file.resolve())])
        if not file.is_file():
            print((folder / ground.OUTPUT).read_text(encoding="utf-8")[-5000:])
            raise SystemExit("The tests could not be run.")
        print(f"measured in {time.monotonic() - began:.0f} s which tests call what", flush=True)
        kept = file
    found = ground.read(kept)
    return Coverage(found["called"], found["seconds"])  # type: ignore[arg-type]  # as `leave` wrote it


def _judged(
    folder: Path, chosen: Sequence[tuple[str, Mutant]], coverage: Coverage, options: argparse.Namespace
) -> list[Row]:
    rows: list[Row] = []
    if options.json and options.json.is_file():
        rows = [Row(**one) for one in json.loads(options.json.read_text(encoding="utf-8"))]
    done = {(row.name, row.line) for row in rows}
    for area, mutant in chosen:
        if (mutant.name, mutant.line) in done:
            continue
        row = _judge(folder, area, mutant, coverage, options.budget)
        rows.append(row)
        print(
            f"{len(rows):5} {row.outcome:11} {row.seconds:5.1f} s {row.tests:4} tests  {row.line}: {row.name}",
            flush=True,
        )
        if options.json:
            options.json.write_text(json.dumps([asdict(one) for one in rows], indent=1), encoding="utf-8")
    return rows


def _judge(folder: Path, area: str, mutant: Mutant, coverage: Coverage, budget: float) -> Row:
    tests, usual = coverage.tests(mutant.file, mutant.function, budget)
    if not tests:
        return Row(area, mutant.name, mutant.line, "not reached", 0, 0.0)
    began, limit = time.monotonic(), _FACTOR * usual + _GRACE
    with ground.changed(folder / mutant.file, mutant.text):
        status = ground.forked(folder, ["-x", *tests], limit, lambda: ())
    outcome = "hung" if status is None else "survived" if status == 0 else "killed"
    if status is None and ground.forked(folder, ["-x", *tests], limit, lambda: ()) is None:
        outcome = NOT_JUDGED  # on a machine so busy the unchanged code is no faster
    return Row(area, mutant.name, mutant.line, outcome, len(tests), round(time.monotonic() - began, 1))


if __name__ == "__main__":
    sys.exit(main())
