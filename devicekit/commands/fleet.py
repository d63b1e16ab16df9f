"""``devicekit fleet``: steer several engines as one."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from devicekit.commands import keys

if TYPE_CHECKING:
    from devicekit.fleet import Fleet, FleetReply


def main(arguments: Sequence[str]) -> int:
    keys.hide(arguments)
    options = _parser().parse_args(arguments)
    try:
        import devicekit.fleet.app  # noqa: F401
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == "devicekit":
            raise
        print(
            f"devicekit fleet: {error.name} is not installed: pip install 'devicekit[fleet]'", file=sys.stderr
        )
        return 1
    key = keys.key("--admin-api-key", options.admin_api_key, options.admin_api_key_file, os.environ)
    return asyncio.run(_steer(options, key))


async def _steer(options: argparse.Namespace, key: str | None) -> int:
    from devicekit.fleet import Fleet, open_record
    from devicekit.fleet.http import HttpEndpoint

    named = [url.rstrip("/") for url in options.engine]
    with open_record(options.file, named) as file:
        endpoints = [HttpEndpoint(url, api_key=key) for url in file.record.members]
        try:
            fleet = Fleet(endpoints, file)
            if options.verb == "serve":
                return await _serve(options, fleet, key)
            if options.verb == "status":
                from devicekit.fleet.app import describe

                print(json.dumps(describe(fleet, await fleet.look()), indent=1))
                return 0
            return _tell(await _verbs(options)[options.verb](fleet))
        finally:
            for one in endpoints:
                await one.close()


def _verbs(options: argparse.Namespace) -> dict[str, Callable[[Fleet], Awaitable[FleetReply]]]:
    from devicekit.fleet import FleetReply, FleetUpdate, tend

    async def update(fleet: Fleet) -> FleetReply:
        made = FleetUpdate(fleet, take_back=options.take_back, timeout=options.timeout)
        run = made.rolling if options.rolling else made.all_at_once
        return await run(options.model_path, options.weight_version, flush_cache=not options.keep_cache)

    async def flush(fleet: Fleet) -> FleetReply:
        path = f"/flush_cache?timeout={options.timeout:g}"
        async with fleet.steering("flush"):
            return FleetReply.over("flush", await fleet.send(path, {}, timeout=options.timeout + 60))

    return {
        "adopt": lambda fleet: fleet.adopt(),
        "update": update,
        "resume": lambda fleet: FleetUpdate(fleet).resume(),
        "tend": lambda fleet: tend(fleet),
        "flush": flush,
        "pause": lambda fleet: fleet.verb("/pause_generation", {"mode": options.mode}),
        "continue": lambda fleet: fleet.verb("/continue_generation", {}),
    }


def _tell(reply: FleetReply) -> int:
    for one in reply.outcomes:
        print(f"{'ok  ' if one.success else 'FAIL'}  {one.member}  {one.message}".rstrip())
    print(reply.message)
    return 0 if reply.success else 1


async def _serve(options: argparse.Namespace, fleet: Fleet, key: str | None) -> int:
    import uvicorn

    from devicekit.fleet.app import create_fleet_app

    app = create_fleet_app(fleet, api_key=key)
    config = uvicorn.Config(app, host=options.host, port=options.port, log_level="warning")
    print(f"Steering {len(fleet.endpoints)} engines on http://{options.host}:{options.port}", flush=True)
    await uvicorn.Server(config).serve()
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("devicekit fleet", description="Steer several engines as one.")
    parser.add_argument(
        "--file", type=Path, default=Path("fleet.json"), help="what the fleet remembers; default: %(default)s"
    )
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="URL",
        help="an engine that belongs to the fleet, once for each; default: those that the file names",
    )
    parser.add_argument(
        "--admin-api-key", help="key of the engines; rather given in a file; default: DEVICEKIT_ADMIN_API_KEY"
    )
    parser.add_argument("--admin-api-key-file", type=Path, help="a file that holds the key; default: none")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("status", help="every engine side by side, as JSON")
    verbs.add_parser("adopt", help="take what all engines serve as the fleet's weights")
    update = verbs.add_parser("update", help="new weights for all, in two phases")
    update.add_argument(
        "--model-path", required=True, help="a directory that every engine finds under this path"
    )
    update.add_argument("--weight-version", required=True, help="the name of the new weights")
    update.add_argument("--rolling", action="store_true", help="one engine after the other, drained first")
    update.add_argument(
        "--take-back", action="store_true", help="if some cannot write, give all the old weights"
    )
    update.add_argument(
        "--keep-cache", action="store_true", help="keep requests' keys and values, and the cache"
    )
    update.add_argument(
        "--timeout", type=float, default=3600.0, help="seconds for an engine; default: %(default)g"
    )
    verbs.add_parser("resume", help="finish an update that was cut short")
    verbs.add_parser("tend", help="bring the fleet's weights to engines that lack them")
    flush = verbs.add_parser("flush", help="forget every cached prefix on all")
    flush.add_argument(
        "--timeout", type=float, default=0.0, help="seconds to wait for idle; default: %(default)g"
    )
    pause = verbs.add_parser("pause", help="start no forward pass on any")
    pause.add_argument(
        "--mode",
        choices=("abort", "retract", "in_place"),
        default="in_place",
        help="of requests that run; default: %(default)s",
    )
    verbs.add_parser("continue", help="end a pause on all")
    serve = verbs.add_parser("serve", help="the same verbs over HTTP")
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    serve.add_argument("--port", type=int, default=30900, help="port to listen on; default: %(default)s")
    return parser
