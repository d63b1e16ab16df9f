"""What happens to the process from outside is said on health, with its reason."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

import pytest

from devicekit.server.errors import EngineStopped
from devicekit.server.health import status_of
from devicekit.server.loop import FORKED
from devicekit.server.watch import Watch
from tests.server.conftest import Serve


@dataclass
class _Clocks:
    wall: float = 1e9
    steady: float = 50.0
    boot: float = 70.0

    def watch(self) -> Watch:
        made = Watch(lambda: self.wall, lambda: self.steady, lambda: self.boot)
        made.look()
        return made

    def go(self, steady: float = 1.0, *, asleep: float = 0.0, set_by: float = 0.0) -> None:
        self.steady += steady
        self.boot += steady + asleep
        self.wall += steady + asleep + set_by


def test_an_ordinary_second_is_not_worth_a_note() -> None:
    clocks = _Clocks()
    watch = clocks.watch()
    for _ in range(10):
        clocks.go(1.05)
        watch.look()
    clocks.go(6.0, set_by=0.9)
    watch.look()
    assert watch.notes == []


@pytest.mark.parametrize(
    ("asleep", "set_by", "steady", "note"),
    [
        (3600.0, 0.0, 1.0, "The machine was suspended for 3600 s."),
        (0.0, 0.0, 61.0, "This process was held up for 60 s."),
        (0.0, 7200.0, 1.0, "The clock was set forward by 7200 s."),
        (0.0, -7200.0, 1.0, "The clock was set back by 7200 s."),
    ],
)
def test_what_happened_is_told_for_some_minutes(
    asleep: float, set_by: float, steady: float, note: str
) -> None:
    clocks = _Clocks()
    watch = clocks.watch()
    clocks.go(steady, asleep=asleep, set_by=set_by)
    watch.look()
    assert watch.notes == [note]
    clocks.go(299)
    assert watch.notes == [note]
    clocks.go(2)
    assert watch.notes == []


def test_several_things_at_once_are_each_told_and_not_without_end() -> None:
    clocks = _Clocks()
    watch = clocks.watch()
    clocks.go(20, asleep=100, set_by=-50)
    watch.look()
    assert len(watch.notes) == 3
    for _ in range(100):
        clocks.go(1, set_by=5)
        watch.look()
    assert len(watch.notes) < 10


def test_health_says_what_happened_and_is_well(serve: Serve) -> None:
    with serve() as server:
        server.serving.watch._note("The clock was set back by 60 s.")
        for path in ("/health", "/ready"):
            answer = server.get(path)
            assert (answer.status_code, answer.json()["message"]) == (200, "The clock was set back by 60 s.")


def test_a_thread_that_is_held_up_between_two_steps_is_stalled(serve: Serve) -> None:
    with serve(health_timeout=0.3) as server:
        go_on = threading.Event()
        server.serving.loop._looks.append(lambda: go_on.wait(60))
        server.eventually(lambda: server.get("/health").status_code == 503)
        assert server.get("/health").json()["status"] == "stalled"
        assert "The engine has been silent for" in server.get("/health").json()["error"]["message"]
        go_on.set()
        server.eventually(lambda: server.get("/health").status_code == 200)


def test_a_copy_of_the_process_says_that_it_has_no_engine(
    serve: Serve, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serve() as server:
        parent = os.getpid()
        monkeypatch.setattr("devicekit.server.loop.os.getpid", lambda: parent + 1)
        assert status_of(server.serving) == ("failed", FORKED)
        assert server.get("/health").status_code == 503
        with pytest.raises(EngineStopped, match="forked"):
            server.serving.loop.submit([])
        assert server.post("/flush_cache").status_code == 503
        monkeypatch.undo()
        assert server.get("/health").status_code == 200
