"""Starting and stopping the web server around an application."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import AsyncIterator

import pytest
from starlette.applications import Starlette

from devicekit.server.run import bind, run, server
from devicekit.server.settings import ServerSettings


def test_asked_to_stop_before_it_has_begun_it_still_begins_and_ends_in_good_order(
    capsys: pytest.CaptureFixture[str],
) -> None:
    happened: list[str] = []

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        happened.append("begun")
        web.asked_to_stop = True  # as by a rank that was told to stop while models were loaded
        yield
        happened.append("ended")

    web = server(Starlette(lifespan=lifespan))

    def give_up() -> None:
        happened.append("late")
        web.should_exit = True

    rescue = threading.Timer(10, give_up)
    rescue.start()
    with bind(ServerSettings(port=0)) as listener:
        assert run(web, listener) == 0
    rescue.cancel()
    assert happened == ["begun", "ended"]
    assert capsys.readouterr().out.startswith("Serving on http://127.0.0.1:")
