"""What hangs is told by the line that it is at."""

from __future__ import annotations

import os
import signal
import threading
import time

import pytest

from devicekit_conformance import whereabouts


def _waits_for_ever() -> None:
    while True:
        time.sleep(60.0)


def test_a_process_that_hangs_is_told_by_its_line() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        whereabouts.answer_into(writing)
        os.write(writing, b"x")
        _waits_for_ever()
    try:
        os.close(writing)
        assert os.read(reading, 1) == b"x"
        told, ends = "", time.monotonic() + 60.0
        while "_waits_for_ever" not in told and time.monotonic() < ends:
            told = whereabouts.line_of(child, reading)
        assert told.startswith(f": it is at {__file__}:")
        assert told.endswith(", in _waits_for_ever")
    finally:
        os.close(reading)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def test_a_process_that_does_not_answer_is_told_by_nothing() -> None:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitid(os.P_PID, child, os.WEXITED | os.WNOWAIT)  # it has ended, and still has its number
    os.close(writing)
    assert whereabouts.line_of(child, reading) == ""
    os.close(reading)
    os.waitpid(child, 0)


def test_a_thread_that_hangs_is_told_by_its_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(whereabouts, "THREAD_LIMIT", 0.1)
    gate, entered = threading.Event(), threading.Event()

    def waits_for_the_gate() -> None:
        entered.set()
        gate.wait()

    thread = threading.Thread(target=waits_for_the_gate)
    thread.start()
    entered.wait()
    try:
        told = whereabouts.held_up(thread)
    finally:
        gate.set()
    assert told.startswith("did not return within 0.1 s: it is at ")
    assert whereabouts.held_up(thread) == ""
