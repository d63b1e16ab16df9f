"""``devicekit serve``: serve a local model over HTTP, alone or as several ranks."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, cast

from devicekit.commands import keys, serve_options
from devicekit.commands.logs import write_logs

if TYPE_CHECKING:
    from socket import socket

    from devicekit.device import Device
    from devicekit.engine import Engine
    from devicekit.scheduling.ranks.group import RankGroup
    from devicekit.scheduling.ranks.scheduler import LockstepScheduler
    from devicekit.server.settings import ServerSettings


def main(arguments: Sequence[str]) -> int:
    keys.hide(arguments)
    options = serve_options.parser().parse_args(arguments)
    try:
        import devicekit.server.run  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "devicekit":
            raise
        missing = (
            f"devicekit serve: {error.name} is not installed; get it with: pip install 'devicekit[serve]'"
        )
        print(missing, file=sys.stderr)
        return 1
    from devicekit.commands import launched

    launched.require_ranks(options.tensor_parallel, copies=options.copies)
    if not launched.is_rank():
        return _serve(options, None)
    return launched.run_as_rank(
        "devicekit serve",
        lambda ranks: _serve(options, ranks),
        timeout=options.rank_timeout,
        heartbeat=options.rank_heartbeat,
    )


def _serve(options: argparse.Namespace, ranks: RankGroup | None) -> int:
    """Serve; on other ranks than the first, take part in what rank 0 serves. Returns the exit status."""
    from devicekit.commands import launched
    from devicekit.coordination import SingleRank, run_on_all_ranks
    from devicekit.engine import Engine
    from devicekit.server.run import bind

    first = ranks is None or ranks.rank == 0
    settings = serve_options.settings(options)
    # Before the model is loaded: that an address is taken need not take minutes.
    listener = run_on_all_ranks(ranks or SingleRank(), lambda: bind(settings) if first else None)
    with listener or nullcontext():
        device: Device | str | None = options.device
        if ranks is not None:
            device = run_on_all_ranks(ranks, lambda: launched.local_device(options.device))
        engine = Engine.open(options.model, device, config=serve_options.engine_config(options), ranks=ranks)
        if listener is not None:
            settings = replace(settings, port=listener.getsockname()[1])  # where 0 asked for any
            return _over_http(engine, settings, listener, ranks, options.log_level, options.access_log)
        launched.follow(cast("LockstepScheduler", engine.scheduler))
        return 0


def _over_http(
    engine: Engine,
    settings: ServerSettings,
    listener: socket,
    ranks: RankGroup | None,
    log_level: str,
    access_log: bool,
) -> int:
    """Serve over HTTP until told to stop, by a signal or by another rank."""
    from devicekit.server import journal
    from devicekit.server.app import create_app
    from devicekit.server.origins import is_loopback
    from devicekit.server.run import run, server

    if not is_loopback(settings.host) and settings.admin_api_key is None and settings.api_key is None:
        print(f"Anyone who can reach {settings.host} can steer this server: no key is set.", file=sys.stderr)
    web = server(create_app(engine, settings), access_log=access_log)
    write_logs(log_level, access=access_log)  # after uvicorn has set up its own
    journal.started(engine)
    if ranks is None:
        status = run(web, listener)
        if status:  # a thread is left behind that would not let the interpreter end
            os._exit(status)
        return status
    scheduler = cast("LockstepScheduler", engine.scheduler)

    def stop(asking: tuple[int, ...]) -> None:
        print(f"devicekit serve: rank {', '.join(map(str, asking))} was told to stop.", file=sys.stderr)
        web.asked_to_stop = True

    scheduler.on_asked_to_stop(stop)
    status = run(web, listener)
    if not scheduler.closed:
        ranks.require_all()
    return status
