"""Which tests run which lines: measured while they run, in every thread of their process.

What a fixture runs that several tests share counts for each of them, whichever came first and had it made.
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import coverage
import pytest

_GUESS = 2.0  # seconds
_FIXTURE = " makes "  # between the place and the name of a fixture
_Fixture = tuple[str, str]  # where it holds, and its name


class Covering:
    """A plugin of pytest's that notes, for each test function, the lines that it runs and how long it takes.

    Args:
        folder: that the files are in; others do not count.
        following: whether lines are noted; without it, only how long tests take.
    """

    def __init__(self, folder: str, following: bool = True) -> None:
        self._folder = folder.rstrip("/") + "/"
        self._test = ""
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()
        self._users: dict[_Fixture, set[str]] = {}  # of fixtures that tests share
        self._following: coverage.Coverage | None = None
        if following:
            self._following = coverage.Coverage(
                data_file=None, config_file=False, include=[f"{self._folder}*"], messages=False
            )
            self._following.set_option("run:disable_warnings", ["no-data-collected", "already-imported"])

    def found(self, shares: Mapping[str, float]) -> dict[str, object]:
        """What was noted, to be kept.

        Args:
            shares: for each test, how many times as many cases it has as were run.
        """
        kept = {one: shares[one] * spent for one, spent in self._seconds.items() if one not in self._failed}
        lines: dict[str, dict[str, list[int]]] = {test: {} for test in kept}
        for who, file, line in self._noted():
            for test in self._users.get(who, ()) if isinstance(who, tuple) else (who,):
                if test in kept:
                    lines[test].setdefault(file, []).append(line)
        return {"lines": lines, "seconds": kept}

    def _noted(self) -> Iterator[tuple[str | _Fixture, str, int]]:
        if self._following is None:
            return
        if self._seconds:
            self._following.stop()
        data = self._following.get_data()
        for file in sorted(data.measured_files()):
            for line, contexts in sorted(data.contexts_by_lineno(file).items()):
                for context in filter(None, contexts):
                    place, fixture, name = context.partition(_FIXTURE)
                    yield (place, name) if fixture else context, file.removeprefix(self._folder), line

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        test = item.nodeid.partition("[")[0]
        self._test = test
        began = time.monotonic()
        if self._following is not None:
            if not self._seconds:
                self._following.start()  # for good: threads of shared fixtures go on from test to test
            self._following.switch_context(test)
        try:
            yield
        finally:
            self._seconds[test] = self._seconds.get(test, 0.0) + time.monotonic() - began

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Iterator[None]:
        if self._following is None or fixturedef.scope == "function":
            yield
            return
        fixture = (fixturedef.baseid, fixturedef.argname)
        self._following.switch_context(_FIXTURE.join(fixture))
        yield
        self._following.switch_context(self._test)
        for item in request.session.items:
            if fixture[1] in getattr(item, "fixturenames", ()) and item.nodeid.startswith(fixture[0]):
                self._users.setdefault(fixture, set()).add(item.nodeid.partition("[")[0])

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid.partition("[")[0])


class Coverage:
    """What was noted, to ask."""

    def __init__(
        self, lines: Mapping[str, Mapping[str, Sequence[int]]], seconds: Mapping[str, float]
    ) -> None:
        self._seconds = {**seconds}
        self._by_line: dict[tuple[str, int], list[str]] = {}
        self._by_file: dict[str, set[str]] = {}
        for test, files in lines.items():
            for file, numbers in files.items():
                self._by_file.setdefault(file, set()).add(test)
                for line in numbers:
                    self._by_line.setdefault((file, line), []).append(test)

    def add(self, tests: Iterable[str]) -> None:
        """Count on tests that were not measured: they are newer."""
        for test in tests:
            self._seconds.setdefault(test, _GUESS)

    def tests(self, file: str, lines: Iterable[int], function: int | None) -> list[list[str]]:
        """Tests that may notice a change, in the order in which they may: those that run one of the lines, those
        that run the function, those that run anything of the file, and all others of the test files of these.

        In each part the fastest first. A measured map is never whole: of a test with many cases few were followed,
        and what runs in processes that tests start was not.
        """
        parts = [
            {test for line in lines for test in self._by_line.get((file, line), ())},
            {*self._by_line.get((file, function or 0), ())},
            self._by_file.get(file, set()),
        ]
        beside = {test.partition("::")[0] for test in set.union(*parts)}
        parts.append({one for one in self._seconds if one.partition("::")[0] in beside})
        seen: set[str] = set()
        found: list[list[str]] = []
        for part in parts:
            found.append(sorted(part - seen, key=lambda one: (self._seconds[one], one)))
            seen |= part
        return found

    def naming(self, module: str, folder: Path) -> list[str]:
        """Tests of the files that name a module, or as a text a package that has it; the fastest first."""
        parts = module.split(".")
        packages = [f'"{".".join(parts[:count])}"' for count in range(2, len(parts))]
        files = {test.partition("::")[0] for test in self._seconds}
        texts = {file: (folder / file).read_text(encoding="utf-8") for file in files}
        there = {file for file in files if any(one in texts[file] for one in (module, *packages))}
        found = (test for test in self._seconds if test.partition("::")[0] in there)
        return sorted(found, key=lambda one: (self._seconds[one], one))

    def within(self, tests: Iterable[str], limit: float) -> tuple[list[str], float]:
        """The first of some tests, as many as fit into ``limit`` seconds, at least one; and their seconds."""
        chosen: list[str] = []
        spent = 0.0
        for test in tests:
            if chosen and spent + self._seconds[test] > limit:
                continue
            chosen.append(test)
            spent += self._seconds[test]
        return chosen, spent
