"""``python -m tools.mutants``: judge mutants, and write the page with the score."""

from __future__ import annotations

import argparse
import compileall
import json
import os
import random
import sys
import time
from collections.abc import Callable, Collection, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

from tools.mutants import ground
from tools.mutants.covering import Coverage
from tools.mutants.equivalent import EQUIVALENT
from tools.mutants.operators import Mutant, mutants
from tools.mutants.page import NOT_JUDGED, SURVIVED, page
from tools.mutants.session import Collected

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
        for name in (
            *("access", "bodies", "budgets", "changed_files", "control", "fields", "fuzz", "generate"),
            *("hostile", "links", "origins", "peer_weights", "schema", "sessions", "structured"),
            *("weight_sharing", "weights"),
        )
    ),
    *("tests/contract/test_all_errors.py", "tests/fleet/test_update.py", "tests/fleet/test_hostile.py"),
    *(
        f"tests/test_{name}.py"
        for name in (
            *("available", "defaults", "device", "engine", "engine_memory", "features", "generation"),
            *("logprobs", "oom", "opening", "ownership", "threads"),
        )
    ),
)
# Processes by the dozen, which cost minutes and are not followed.
_LEFT_OUT = ("tests/scheduling/test_ranks*.py", "tests/registry/wheels*")
_Judge = Callable[[Mutant, Sequence[str], float], "int | None"]
_FACTOR, _GRACE = 4.0, 15.0  # a mutant may take this many times as long as the tests did, and so many seconds


@dataclass
class Row:
    """One mutant, judged."""

    area: str
    name: str
    line: int
    outcome: str  # "killed", "hung", `SURVIVED`, "not reached", or `NOT_JUDGED`
    tests: int
    seconds: float
    anew: bool  # in a process that imported the changed code


def main(argv: Sequence[str] | None = None) -> int:
    """Judge mutants; 0 if all that are not explained were killed."""
    parser = argparse.ArgumentParser(prog="python -m tools.mutants", description=__doc__)
    parser.add_argument("--seed", type=int, default=0, help="of the sample; default: %(default)s")
    parser.add_argument("--count", type=int, help="mutants to judge; default: all")
    parser.add_argument("--area", choices=AREAS, action="append", help="default: every area")
    parser.add_argument(
        "--budget", type=float, default=10.0, help="seconds of tests for each; default: %(default)g"
    )
    parser.add_argument(
        "--more", type=float, default=60.0,
        help="seconds of further tests for each that these let pass: of all test files that run anything of its "
        "file; default: %(default)g",
    )  # fmt: skip
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
        rows = Judge(folder, options).judged(chosen)
    survivors = [
        row for row in rows if row.outcome in (SURVIVED, "not reached") and row.name not in EQUIVALENT
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


class Judge:
    """Judges mutants one after another, and keeps what it found.

    Args:
        folder: a copy of the checkout.
    """

    def __init__(self, folder: Path, options: argparse.Namespace) -> None:
        self._folder = folder
        self._map: Path = (options.map or folder / "covering.json").resolve()
        self._budget: float = options.budget
        self._more: float = options.more
        self._rows: Path = (options.json or folder / "rows.json").resolve()
        self._screen = os.fdopen(os.dup(1), "w")  # processes of pytest's have an output of their own
        self._coverage = Coverage({}, {})
        self._sound: set[str] = set()  # tests that have passed without a change
        self._unsound: set[str] = set()

    def judged(self, chosen: Sequence[tuple[str, Mutant]]) -> list[Row]:
        """Judge what is not judged yet: in processes forked after collection, and what is left in new ones."""
        arguments = [*TESTS, *(f"--ignore-glob={one}" for one in _LEFT_OUT)]
        ground.forked(
            self._folder, arguments, None, Collected(self._folder, lambda tests: self._quickly(tests, chosen))
        )
        if not self._map.is_file():
            print((self._folder / ground.OUTPUT).read_text(encoding="utf-8")[-5000:])
            raise SystemExit("The tests could not be run.")
        self._coverage = _read(self._map)
        # What runs as a module is imported is the same in every process that has imported it.
        left = {row.name for row in self._kept() if row.outcome == SURVIVED and not row.anew}
        for area, mutant in chosen:
            if mutant.name in left or not mutant.lines:
                # Where all that may notice it has run, only what was run before a change could reach it is left.
                self._add(self._anew(area, mutant, 0.0 if mutant.lines else self._more))
        return self._kept()

    def _quickly(self, tests: Collected, chosen: Sequence[tuple[str, Mutant]]) -> None:
        if not self._map.is_file():
            began = time.monotonic()
            tests.measure(self._map)
            self._tell(f"measured in {time.monotonic() - began:.0f} s which tests run what")
        self._coverage = _read(self._map, tests.names())
        if chosen and chosen[0][1].lines:
            _, first = chosen[0]
            unchanged = replace(first, text=(self._folder / first.file).read_text(encoding="utf-8"))
            names, usual = self._coverage.within(self._order(first)[0], self._budget)
            if tests.judge(unchanged, names, _FACTOR * usual + _GRACE) != 0:
                raise SystemExit(f"Nothing can be judged: tests fail without a change: {', '.join(names)}")
        done = {(row.name, row.line) for row in self._kept()}
        for area, mutant in chosen:
            if mutant.lines and (mutant.name, mutant.line) not in done:
                judge = partial(self._honestly, tests)
                self._add(self._row(area, mutant, judge, self._more, anew=False))

    def _honestly(self, tests: Collected, mutant: Mutant, names: Sequence[str], seconds: float) -> int | None:
        """As `Collected.judge`. A test that fails without the change as well has noticed nothing."""
        while True:
            names = [one for one in names if one not in self._unsound]
            status, noticed = tests.judge(mutant, names, seconds), tests.noticed()
            if status is None or noticed is None or noticed in self._sound:
                return status
            text = (self._folder / mutant.file).read_text(encoding="utf-8")
            if tests.judge(replace(mutant, text=text), [noticed], seconds) == 0:
                self._sound.add(noticed)
                return status
            self._unsound.add(noticed)
            self._tell(f"fails without a change as well: {noticed}")

    def _anew(self, area: str, mutant: Mutant, more: float) -> Row:
        def judge(mutant: Mutant, tests: Sequence[str], seconds: float) -> int | None:
            with ground.changed(self._folder / mutant.file, mutant.text):
                return ground.forked(self._folder, ["-x", *tests], seconds)

        return self._row(area, mutant, judge, more, anew=True)

    def _row(self, area: str, mutant: Mutant, judge: _Judge, more: float, anew: bool) -> Row:
        near, far = self._order(mutant)
        if not near:
            return Row(area, mutant.name, mutant.line, "not reached", 0, 0.0, anew)
        began = time.monotonic()
        tests, usual = self._coverage.within(near, self._budget)
        outcome, count = self._outcome(mutant, tests, usual, judge), len(tests)
        if outcome == SURVIVED and more:
            tests, usual = self._coverage.within([one for one in far if one not in {*tests}], more)
            outcome, count = self._outcome(mutant, tests, usual, judge), count + len(tests)
        return Row(area, mutant.name, mutant.line, outcome, count, round(time.monotonic() - began, 1), anew)

    def _order(self, mutant: Mutant) -> tuple[list[str], list[str]]:
        """The tests that run a change, and all that may notice it."""
        parts = self._coverage.tests(mutant.file, [*mutant.lines, *mutant.uses], mutant.function)
        near = parts[0] + parts[1]
        every = near + parts[2] + parts[3]
        if not mutant.lines:  # it runs as its module is imported, for whoever asks for the module
            named = self._coverage.naming(mutant.file.removesuffix(".py").replace("/", "."), self._folder)
            near = list(dict.fromkeys([*near, *named]))
            every = list(dict.fromkeys([*near, *every]))
        return near or every, every

    def _outcome(self, mutant: Mutant, tests: Sequence[str], usual: float, judge: _Judge) -> str:
        if not tests:
            return SURVIVED
        limit = _FACTOR * usual + _GRACE
        status = judge(mutant, tests, limit)
        if status is None and ground.forked(self._folder, ["-x", *tests], limit) is None:
            return NOT_JUDGED  # on a machine so busy the unchanged code is no faster
        return "hung" if status is None else SURVIVED if status == 0 else "killed"

    def _kept(self) -> list[Row]:
        if not self._rows.is_file():
            return []
        return [Row(**one) for one in json.loads(self._rows.read_text(encoding="utf-8"))]

    def _add(self, row: Row) -> None:
        rows = [one for one in self._kept() if (one.name, one.line) != (row.name, row.line)] + [row]
        self._rows.write_text(json.dumps([asdict(one) for one in rows], indent=1), encoding="utf-8")
        self._tell(
            f"{len(rows):5} {row.outcome:11} {row.seconds:5.1f} s {row.tests:4} tests  {row.line}: {row.name}"
        )

    def _tell(self, line: str) -> None:
        print(line, file=self._screen, flush=True)


def _read(file: Path, names: Collection[str] | None = None) -> Coverage:
    """What was measured of the tests that there still are, and those that came since then."""
    found = json.loads(file.read_text(encoding="utf-8"))
    names = found["seconds"] if names is None else names
    known = {test: seconds for test, seconds in found["seconds"].items() if test in names}
    coverage = Coverage({test: lines for test, lines in found["lines"].items() if test in known}, known)
    coverage.add({*names}.difference(found["failing"]))
    return coverage


if __name__ == "__main__":
    sys.exit(main())
