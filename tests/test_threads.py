from __future__ import annotations

import threading

import pytest

from tests.threads import in_threads


def test_work_runs_in_as_many_threads_at_once() -> None:
    meeting = threading.Barrier(5, timeout=10)
    in_threads(5, meeting.wait)
    assert not meeting.broken


def test_what_fails_in_a_thread_fails_the_test() -> None:
    with pytest.raises(ZeroDivisionError):
        in_threads(3, lambda: 1 / 0)
