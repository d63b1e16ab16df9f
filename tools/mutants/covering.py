"""Which tests run which lines: measured while they run, in every thread of their process.

What a fixture runs that several tests share counts for each of them, whichever came first and had it made.
"""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any

import pytest

_GUESS = 2.0  # seconds

Tracer = Callable[[FrameType, str, Any], Any]


class Covering:
    """A plugin of pytest's that notes, for each test function, the lines that it runs and how long it takes.

    Args:
        folder: that the files are in; others do not count.
        following: whether lines are noted; without it, only how long tests take.
    """

    def __init__(self, folder: str, following: bool = True) -> None:
        self._folder = folder.rstrip("/") + "/"
        self._following = following
        self._lines: dict[str, set[tuple[str, int]]] = {}  # by test
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()
        self._left: dict[CodeType, set[int]] = {}  # lines that this test has not run yet
        self._shared: dict[tuple[str, str], set[tuple[str, int]]] = {}  # by the fixture's place and name
        self._users: dict[tuple[str, str], set[str]] = {}

    def found(self, shares: Mapping[str, float]) -> dict[str, object]:
        """What was noted, to be kept.

        Args:
            shares: for each test, how many times as many cases it has as were run.
        """
        for fixture, lines in self._shared.items():
            for test in self._users.get(fixture, ()):
                self._lines[test] |= lines
        kept: dict[str, dict[str, list[int]]] = {}
        for test, lines in self._lines.items():
            if test not in self._failed:
                kept[test] = {}
                for file, line in sorted(lines):
                    kept[test].setdefault(file, []).append(line)
        return {"lines": kept, "seconds": {one: self._seconds[one] * shares[one] for one in kept}}

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        test = item.nodeid.partition("[")[0]
        self._left = {}
        began = time.monotonic()
        if self._following:
            threading.settrace(self._called)
            sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self._seconds[test] = self._seconds.get(test, 0.0) + time.monotonic() - began
            self._lines.setdefault(test, set()).update(self._run())

    @pytest.hookimpl(hookwrapper=True)
    def pytest_fixture_setup(
        self, fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest
    ) -> Iterator[None]:
        if fixturedef.scope == "function":
            yield
            return
        before, self._left = self._left, {}
        yield
        fixture = (fixturedef.baseid, fixturedef.argname)
        self._shared.setdefault(fixture, set()).update(self._run())
        for item in request.session.items:
            if fixture[1] in getattr(item, "fixturenames", ()) and item.nodeid.startswith(fixture[0]):
                self._users.setdefault(fixture, set()).add(item.nodeid.partition("[")[0])
        for code, left in self._left.items():
            before[code] = before.get(code, left) & left
        self._left = before

    def _run(self) -> set[tuple[str, int]]:
        found: set[tuple[str, int]] = set()
        for code, left in [*self._left.items()]:
            file = code.co_filename.removeprefix(self._folder)
            found.update((file, line) for line in _lines(code) - left)
        return found

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self._failed.add(report.nodeid.partition("[")[0])

    def _called(self, frame: FrameType, event: str, argument: Any) -> Tracer | None:
        code = frame.f_code
        if not code.co_filename.startswith(self._folder):
            return None
        left = self._left.get(code)
        if left is None:
            left = self._left[code] = _lines(code)
        left.discard(frame.f_lineno)
        return self._ran if left else None  # a function of which all is known costs nothing more

    def _ran(self, frame: FrameType, event: str, argument: Any) -> Tracer | None:
        left = self._left.get(frame.f_code)
        if left is None:  # it began in an earlier test
            left = self._left[frame.f_code] = _lines(frame.f_code)
        left.discard(frame.f_lineno)
        return self._ran if left else None


def _lines(code: CodeType) -> set[int]:
    return {line for _, _, line in code.co_lines() if line is not None}


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
