"""Work beside the engine's thread: what it made is taken, or let go of once, whenever that is decided."""

from __future__ import annotations

import threading
import time

import pytest

from devicekit.weights.beside import Task

_PATIENCE = 60.0  # seconds


def _wait(task: Task[str]) -> None:
    deadline = time.monotonic() + _PATIENCE
    while not task.done:
        assert time.monotonic() < deadline
        time.sleep(0.001)


@pytest.mark.parametrize("beside", [False, True])
def test_what_is_done_is_there_until_nobody_wants_it(beside: bool) -> None:
    gone: list[str] = []
    task = Task(lambda: "made", gone.append, beside=beside)
    _wait(task)
    assert (task.result, task.error, gone) == ("made", None, [])
    task.abandon()
    task.abandon()
    assert gone == ["made"]


def test_what_nobody_wants_any_more_is_let_go_of_as_soon_as_it_is_there() -> None:
    gone: list[str] = []
    go_on = threading.Event()

    def work() -> str:
        assert go_on.wait(_PATIENCE)
        return "made"

    task = Task(work, gone.append, beside=True)
    task.abandon()
    assert (task.done, gone) == (False, [])
    go_on.set()
    _wait(task)
    for thread in threading.enumerate():
        if thread.name == "devicekit-staging":
            thread.join(_PATIENCE)
    assert gone == ["made"]


@pytest.mark.parametrize("beside", [False, True])
@pytest.mark.parametrize("error", [ValueError("no"), SystemExit("panic")])
def test_work_that_fails_says_why_and_leaves_nothing_to_let_go_of(beside: bool, error: BaseException) -> None:
    gone: list[str] = []

    def work() -> str:
        raise error

    task = Task(work, gone.append, beside=beside)
    _wait(task)
    assert str(error) in str(task.error)
    task.abandon()
    assert gone == []
