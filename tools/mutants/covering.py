"""Which tests call which functions: measured while they run, in every thread of their process."""

from __future__ import annotations

import sys
import threading
import time
from collections.abc import Iterator
from types import CodeType, FrameType

import pytest

Function = tuple[str, int]  # file and first line


class Covering:
    """A plugin of pytest's that notes, for each test function, what it called and how long it took.

    Args:
        folder: that the files are in; others do not count.
    """

    def __init__(self, folder: str) -> None:
        self._folder = folder.rstrip("/") + "/"
        self.called: dict[str, set[Function]] = {}
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()
        self._seen: set[CodeType] = set()

    def _note(self, frame: FrameType, event: str, argument: object) -> None:
        self._seen.add(frame.f_code)

    @pytest.hookimpl(hookwrapper=True)
    def pytest_runtest_protocol(self, item: pytest.Item) -> Iterator[None]:
        test = item.nodeid.partition("[")[0]
        self._seen = set()
        began = time.monotonic()
        threading.settrace(self._note)
        sys.settrace(self._note)
        try:
            yield
        finally:
            sys.settrace(None)
            threading.settrace(None)
            self.seconds[test] = self.seconds.get(test, 0.0) + time.monotonic() - began
            named = self.called.setdefault(test, set())
            for code in self._seen:
                if code.co_filename.startswith(self._folder):
                    named.add((code.co_filename.removeprefix(self._folder), code.co_firstlineno))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed:
            self.failed.add(report.nodeid.partition("[")[0])


class Coverage:
    """What was noted, to ask."""

    def __init__(self, called: dict[str, list[list[object]]], seconds: dict[str, float]) -> None:
        self._seconds = seconds
        self._by_function: dict[Function, list[str]] = {}
        self._by_file: dict[str, set[str]] = {}
        for test, functions in called.items():
            for file, line in functions:
                self._by_function.setdefault((str(file), int(str(line))), []).append(test)
                self._by_file.setdefault(str(file), set()).add(test)

    def tests(self, file: str, function: int | None, limit: float) -> tuple[list[str], float]:
        """Tests that call a function, or else anything of the file, and the seconds that they took.

        The fastest first, as many as fit into ``limit`` seconds: at least one.
        """
        found = self._by_function.get((file, function or 0), [])
        # What no test calls by itself may still be called in processes that tests start.
        found = found or sorted(self._by_file.get(file, ()))
        chosen: list[str] = []
        spent = 0.0
        for test in sorted(set(found), key=lambda one: (self._seconds[one], one)):
            if chosen and spent + self._seconds[test] > limit:
                break
            chosen.append(test)
            spent += self._seconds[test]
        return chosen, spent
