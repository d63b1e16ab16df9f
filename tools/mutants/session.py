"""One session of pytest that collects once, and judges in processes forked from it: a change costs no more.

A forked process changes the code of the functions that it holds, and runs the chosen tests as they were collected.
"""

from __future__ import annotations

import gc
import json
import random
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import CodeType, FunctionType

import pytest

from tools.mutants import ground
from tools.mutants.covering import Covering
from tools.mutants.operators import Mutant

_MEASURED = 2  # cases of one test that are followed; the others are taken to call the same


class Collected:
    """A plugin whose session does some work instead of running its tests.

    Args:
        folder: that everything is in.
        work: is given this, once everything is collected.
    """

    def __init__(self, folder: Path, work: Callable[[Collected], None]) -> None:
        self.folder = folder
        self._work = work
        self._noticed = folder / "noticed.txt"
        self._items: dict[str, list[pytest.Item]] = {}

    @pytest.hookimpl(tryfirst=True)
    def pytest_runtestloop(self, session: pytest.Session) -> bool:
        for item in session.items:
            self._items.setdefault(item.nodeid.partition("[")[0], []).append(item)
        self._work(self)
        return True

    def measure(self, file: Path) -> None:
        """Write down which tests run which lines, and how long each takes."""
        draw = random.Random(0)
        chosen = {name: draw.sample(items, min(len(items), _MEASURED)) for name, items in self._items.items()}

        shares = {name: len(items) / len(chosen[name]) for name, items in self._items.items()}

        def measured(names: Iterable[str], following: bool) -> int:
            covering = Covering(str(self.folder), following)
            self._run([one for name in names for one in chosen[name]], covering, stop=False)
            file.write_text(json.dumps(covering.found(shares)), encoding="utf-8")
            return 0

        ground.fork(lambda: measured(chosen, following=True), None)
        found: dict[str, dict[str, object]] = json.loads(file.read_text(encoding="utf-8"))
        # Some tests cannot be followed: they measure time or memory themselves, or count what is traced.
        others = [name for name in chosen if name not in found["seconds"]]
        ground.fork(lambda: measured(others, following=False), None)
        seconds = json.loads(file.read_text(encoding="utf-8"))["seconds"]
        found["seconds"] |= seconds
        kept = {**found, "failing": [name for name in others if name not in seconds]}
        file.write_text(json.dumps(kept), encoding="utf-8")

    def names(self) -> set[str]:
        """Every test, cases of one under one name."""
        return {*self._items}

    def judge(self, mutant: Mutant, tests: Sequence[str], seconds: float) -> int | None:
        """Run tests with a change: 0 if they pass, ``None`` if they take longer than ``seconds``."""
        items = [one for name in tests for one in self._items.get(name, ())]
        self._noticed.unlink(missing_ok=True)

        def judged() -> int:
            change(self.folder / mutant.file, mutant.text)
            return self._run(items, _Tell(self._noticed), stop=True)

        with ground.changed(self.folder / mutant.file, mutant.text):  # for processes that tests start
            return ground.fork(judged, seconds)

    def noticed(self) -> str | None:
        """The test that failed as tests were last judged; ``None``: none did, or their process ended."""
        return self._noticed.read_text(encoding="utf-8") if self._noticed.is_file() else None

    def _run(self, items: Sequence[pytest.Item], plugin: object, stop: bool) -> int:
        """Run tests, with a plugin that sees it; 1 as soon as one failed, where that is the end of it."""
        failures = _Failures()
        if not items:
            return 0
        manager = items[0].config.pluginmanager
        manager.register(failures)
        manager.register(plugin)
        for item, following in zip(items, [*items[1:], None], strict=True):
            item.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            if stop and failures.any:
                return 1
        return int(failures.any)


class _Failures:
    any = False

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        self.any = self.any or report.failed


class _Tell:
    def __init__(self, file: Path) -> None:
        self._file = file

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed and not self._file.is_file():
            self._file.write_text(report.nodeid.partition("[")[0], encoding="utf-8")


def change(file: Path, text: str) -> None:
    """Give every function of a loaded file the code that another text of it has, whoever holds the function."""
    codes = [*_codes(compile(text, str(file), "exec"))]
    names = Counter((one.co_name, one.co_firstlineno) for one in codes)
    # Of two lambdas in a line it is not known which is which.
    new = {key: one for one in codes if names[key := (one.co_name, one.co_firstlineno)] == 1}
    gc.unfreeze()  # what is frozen is not listed
    for one in gc.get_objects():
        # Not isinstance, which has some objects tell of their class, and warn.
        if type(one) is FunctionType and one.__code__.co_filename == str(file):
            code = new.get((one.__code__.co_name, one.__code__.co_firstlineno))
            if code is not None and code.co_freevars == one.__code__.co_freevars:
                one.__code__ = code


def _codes(code: CodeType) -> Iterator[CodeType]:
    yield code
    for one in code.co_consts:
        if isinstance(one, CodeType):
            yield from _codes(one)
