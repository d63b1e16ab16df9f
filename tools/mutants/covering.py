"""Which tests run which lines: measured while they run, in every thread of their process."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import CodeType, FrameType
from typing import Any

import pytest

Tracer = Callable[[FrameType, str, Any], Any]


class Covering:
    """A plugin of pytest's that notes, for each test function, the lines that it runs and how long it takes.

    Args:
        folder: that the files are in; others do not count.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder.rstrip("/") + "/"
        self._lines: dict[str, set[tuple[str, int]]] = {}  # by test
        self._seconds: dict[str, float] = {}
        self._failed: set[str] = set()
        self._left: dict[CodeType, set[int]] = {}  # lines that this test has not run yet

    def found(self, shares: Mapping[str, float]) -> dict[str, object]:
        """What was noted, to be kept.

        Args:
            shares: for each test, how many times as many cases it has as were run.
        """
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
        threading.settrace(self._called)
        sys.settrace(self._called)
        try:
            yield
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self._seconds[test] = self._seconds.get(test, 0.0) + time.monotonic() - began
            named = self._lines.setdefault(test, set())
            for code, left in [*self._left.items()]:
                file = code.co_filename.removeprefix(self._folder)
                named.update((file, line) for line in _lines(code) - left)

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
        self._seconds = seconds
        self._by_line: dict[tuple[str, int], list[str]] = {}
        self._by_file: dict[str, set[str]] = {}
        for test, files in lines.items():
            for file, numbers in files.items():
                self._by_file.setdefault(file, set()).add(test)
                for line in numbers:
                    self._by_line.setdefault((file, line), []).append(test)

    def tests(
        self, file: str, lines: Iterable[int], function: int | None, limit: float
    ) -> tuple[list[str], float]:
        """Tests that run one of the lines, or else anything of the file, and the seconds that they take.

        The fastest first, then those that run the function, as many as fit into ``limit`` seconds: at least one.
        """
        ran = {test for line in lines for test in self._by_line.get((file, line), ())}
        # Not all cases of a test were followed.
        near = {*self._by_line.get((file, function or 0), ())} - ran
        # What no test runs by itself may still be run in processes that tests start.
        found = (ran, near) if ran or near else (self._by_file.get(file, set()),)
        chosen: list[str] = []
        spent = 0.0
        for test in (
            one for some in found for one in sorted(some, key=lambda one: (self._seconds[one], one))
        ):
            if chosen and spent + self._seconds[test] > limit:
                break
            chosen.append(test)
            spent += self._seconds[test]
        return chosen, spent
