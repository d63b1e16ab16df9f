"""``devicekit fleet``: steer several engines as one."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import logging
import os
import resource
import sys
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from devicekit.commands import keys
from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import shown

if TYPE_CHECKING:
    from devicekit.fleet import Fleet, FleetReply, MemberSource
    from devicekit.fleet.http import HttpEndpoint

_MOST_SECONDS = 1e6


def main(arguments: Sequence[str]) -> int:
    keys.hide(arguments)
    options = _parser().parse_args(arguments)
    try:
        import devicekit.fleet.app
        import devicekit.fleet.http  # of what they import, serving alone has not all
        import devicekit.server.protocol  # noqa: F401
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
    from devicekit.fleet.exchange import peer_url
    from devicekit.fleet.http import HttpEndpoint

    named = [peer_url(url, "an engine") for url in options.engine]
    source = _source(options, key)
    _raise_file_limit()

    def connect(url: str) -> HttpEndpoint:
        return HttpEndpoint(url, api_key=key)

    if options.verb == "release-hold":
        if not named:
            raise ConfigurationError("Name the engines that are to be freed: --engine URL, once for each.")
        return await _release_hold([connect(url) for url in named], options)
    with open_record(options.file, named, sourced=source is not None) as file:
        if file.left_out:
            print(
                f"note: no longer of this fleet, which was given other engines: {', '.join(file.left_out)}. They "
                "serve what they have, and no update reaches them; name all engines, or none, to keep them.",
                file=sys.stderr,
            )
        fleet = Fleet(
            [connect(url) for url in file.record.members],
            file,
            source=source,
            connect=connect,
            take_over=options.take_over,
            keep_claims=options.verb == "serve",
        )
        try:
            if options.verb == "serve":
                return await _serve(options, fleet, key)
            if options.verb == "status":
                from devicekit.fleet.app import describe

                await fleet.refresh()
                print(json.dumps(describe(fleet, await fleet.look()), indent=1))
                return 0
            return _tell(await _verbs(options)[options.verb](fleet))
        finally:
            await fleet.close()


def _source(options: argparse.Namespace, key: str | None) -> MemberSource | None:
    """Where the engines are told, if they are not named one by one."""
    from devicekit.fleet import DnsMembers
    from devicekit.fleet.gateway import GatewayMembers

    given = [bool(options.engine), options.gateway is not None, options.dns is not None]
    if sum(given) > 1:
        raise ConfigurationError("Name engines by --engine, by --gateway or by --dns: one of the three.")
    if options.gateway is not None:
        own = keys.key("--api-key", None, options.gateway_api_key_file, {})
        return GatewayMembers(options.gateway, api_key=own or key)
    return None if options.dns is None else DnsMembers.parse(options.dns)


def _raise_file_limit() -> None:
    """A call to each of a thousand engines at a time takes more sockets than a process usually has."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


def _verbs(options: argparse.Namespace) -> dict[str, Callable[[Fleet], Awaitable[FleetReply]]]:
    from devicekit.fleet import FleetUpdate, tend

    async def update(fleet: Fleet) -> FleetReply:
        made = FleetUpdate(
            fleet, take_back=options.take_back, timeout=options.timeout, at_once=options.at_once
        )
        run = made.rolling if options.rolling else made.all_at_once
        return await run(options.model_path, options.weight_version, flush_cache=not options.keep_cache)

    return {
        "adopt": lambda fleet: fleet.adopt(),
        "update": update,
        "resume": lambda fleet: FleetUpdate(fleet, take_back=options.take_back).resume(),
        "tend": lambda fleet: tend(fleet),
        "flush": lambda fleet: fleet.verb(
            "/flush_cache", {"timeout": options.timeout}, timeout=options.timeout + 60
        ),
        "pause": lambda fleet: fleet.verb("/pause_generation", {"mode": options.mode}),
        "continue": lambda fleet: fleet.verb("/continue_generation", {}),
    }


_WARNING = """\
They will generate with the weights that they have, whichever those are: nothing is compared, and behind one
balancer different versions may be served then. The fleet that held them steers them no more until it claims
them anew. Where its file still is, `devicekit fleet --file FILE resume` or `tend` does better: it brings its
weights."""


async def _release_hold(endpoints: Sequence[HttpEndpoint], options: argparse.Namespace) -> int:
    """Show who has the engines; with ``--yes``, take them from there."""
    from devicekit.fleet.unhold import held_by, held_view, release_hold

    failed = False
    try:
        for one in endpoints:
            view = await held_view(one)
            who = held_by(view)
            if not view.reachable:
                print(f"FAIL  {one.name}  {view.message}")
            elif not who:
                print(f"ok    {one.name}  belongs to no fleet, and is not held by one")
                continue
            elif options.yes:
                outcome = await release_hold(one, view)
                print(f"{'ok  ' if outcome.success else 'FAIL'}  {one.name}  {outcome.message}")
                failed = failed or not outcome.success
                continue
            else:
                held = "held, and does not generate" if view.awaits_fleet else "claimed, and generates"
                print(f"      {one.name}  has {shown(view.weight_version)}; {held}: {who}")
            failed = True
    finally:
        for one in endpoints:
            await one.close()
    if not options.yes:
        print(f"Nothing was changed. With --yes they belong to no fleet any more.\n{_WARNING}")
    return int(failed)


def _tell(reply: FleetReply) -> int:
    for one in reply.outcomes:
        print(f"{'ok  ' if one.success else 'FAIL'}  {one.member}  {one.message}".rstrip())
    print(reply.message)
    for note in reply.notes:
        print(f"note: {note}")
    return 0 if reply.success else 1


async def _serve(options: argparse.Namespace, fleet: Fleet, key: str | None) -> int:
    from devicekit.commands.fleet_server import server
    from devicekit.fleet import UnknownMembers
    from devicekit.fleet.app import create_fleet_app
    from devicekit.server.origins import Origins

    app = create_fleet_app(
        fleet,
        api_key=key,
        tend_every=options.tend_every or None,
        adopt=options.adopt,
        own_host=Origins(options.host, options.allowed_host).is_own_host,
        on_close=fleet.close,  # within the server's life: after it, the signal that ended it ends the process
    )
    web = server(app, host=options.host, port=options.port)
    with contextlib.suppress(UnknownMembers):  # who is asked for again and again
        await fleet.refresh()
    logging.basicConfig(format="%(levelname)s %(message)s")
    listener = web.config.bind_socket()
    port = listener.getsockname()[1]
    print(f"Steering {len(fleet.endpoints)} engines on http://{options.host}:{port}", flush=True)
    await web.serve(sockets=[listener])
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("devicekit fleet", description="Steer several engines as one.")
    parser.add_argument(
        "--file", type=Path, default=Path("fleet.json"), help="what the fleet remembers; default: %(default)s"
    )
    _add_members(parser)
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    verbs.add_parser("status", help="every engine side by side, as JSON")
    verbs.add_parser("adopt", help="take what all engines serve as the fleet's weights")
    _add_update(verbs.add_parser("update", help="new weights for all, in two phases"))
    resume = verbs.add_parser("resume", help="finish an update that was cut short")
    resume.add_argument("--take-back", action="store_true", help="give all the old weights again instead")
    verbs.add_parser("tend", help="bring the fleet's weights to engines that lack them")
    flush = verbs.add_parser("flush", help="forget every cached prefix on all")
    flush.add_argument(
        "--timeout", type=_seconds, default=0.0, help="seconds to wait for idle; default: %(default)g"
    )
    pause = verbs.add_parser("pause", help="start no forward pass on any")
    pause.add_argument(
        "--mode",
        choices=("abort", "retract", "in_place"),
        default="in_place",
        help="of requests that run; default: %(default)s",
    )
    verbs.add_parser("continue", help="end a pause on all")
    release = verbs.add_parser(
        "release-hold", help="have engines whose fleet is gone serve what they have: a last resort"
    )
    release.add_argument("--yes", action="store_true", help="do it; without, show who has them")
    _add_serve(verbs.add_parser("serve", help="the same verbs over HTTP"))
    return parser


def _add_members(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--engine",
        action="append",
        default=[],
        metavar="URL",
        help="an engine that belongs to the fleet, once for each; default: those that the file names",
    )
    parser.add_argument(
        "--gateway",
        metavar="URL",
        help="a gateway whose workers (/workers, /list_workers) are the fleet, asked before each verb; "
        "default: none",
    )
    parser.add_argument(
        "--gateway-api-key-file", type=Path, help="a file that holds its key; default: the engines' key"
    )
    parser.add_argument(
        "--dns",
        metavar="NAME:PORT",
        help="a name whose every address is an engine, as of a headless service; resolved before each verb; "
        "default: none",
    )
    parser.add_argument(
        "--take-over", action="store_true", help="steer also engines that another fleet has claimed"
    )
    parser.add_argument(
        "--admin-api-key", help="key of the engines; rather given in a file; default: DEVICEKIT_ADMIN_API_KEY"
    )
    parser.add_argument("--admin-api-key-file", type=Path, help="a file that holds the key; default: none")


def _add_update(update: argparse.ArgumentParser) -> None:
    update.add_argument(
        "--model-path", required=True, help="a directory that every engine finds under this path"
    )
    update.add_argument("--weight-version", required=True, help="the name of the new weights")
    update.add_argument("--rolling", action="store_true", help="one engine after the other, drained first")
    update.add_argument(
        "--at-once",
        type=_count,
        default=1,
        metavar="ENGINES",
        help="that a rolling update takes out of service at a time; default: %(default)s",
    )
    update.add_argument(
        "--take-back", action="store_true", help="if some cannot write, give all the old weights"
    )
    update.add_argument(
        "--keep-cache", action="store_true", help="keep requests' keys and values, and the cache"
    )
    update.add_argument(
        "--timeout", type=_seconds, default=3600.0, help="seconds for an engine; default: %(default)g"
    )


def _add_serve(serve: argparse.ArgumentParser) -> None:
    serve.add_argument("--host", default="127.0.0.1", help="address to listen on; default: %(default)s")
    serve.add_argument("--port", type=int, default=30900, help="port to listen on; default: %(default)s")
    serve.add_argument(
        "--allowed-host",
        action="append",
        default=[],
        metavar="NAME",
        help="name that it is reached by without a key, if others than its address; repeat for several; "
        "default: none",
    )
    serve.add_argument(
        "--adopt",
        action="store_true",
        help="where no weights are known yet, take what the first engines have as the fleet's",
    )
    serve.add_argument(
        "--tend-every",
        type=_seconds,
        default=5.0,
        metavar="SECONDS",
        help="look after the engines so often; 0: only when asked to; default: %(default)g",
    )


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= _MOST_SECONDS:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no number of seconds from 0 to a million")
    return seconds


def _count(text: str) -> int:
    if not text.isdecimal() or not 0 < int(text) <= 100_000:
        raise argparse.ArgumentTypeError(f"{shown(text)} is no number of engines")
    return int(text)
