"""The fleet's own control plane: the engines' verbs under their names, each sent to all and answered once."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hmac
from collections.abc import AsyncIterator, Awaitable, Callable, Coroutine, Mapping, Sequence
from types import MappingProxyType
from typing import Any

from prometheus_client import CollectorRegistry, Gauge, generate_latest
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, PlainTextResponse, Response
from starlette.routing import Route

from devicekit.contract.errors import DeviceKitError
from devicekit.contract.text import shown
from devicekit.documents import UnreadableDocument, finite_number, parse_sent
from devicekit.fleet.agreement import notes
from devicekit.fleet.errors import FleetBusy, RecordNotWritten, UnknownMembers
from devicekit.fleet.fleet import Fleet
from devicekit.fleet.keeper import Keeper
from devicekit.fleet.look import Look
from devicekit.fleet.outcomes import FleetReply, MemberView
from devicekit.fleet.tend import tend
from devicekit.fleet.update import FleetUpdate

VERBS: Mapping[str, str] = MappingProxyType(
    {
        "/flush_cache": "forget every cached prefix",
        "/pause_generation": "start no forward pass",
        "/continue_generation": "end a pause",
        "/abort_request": "end requests",
        "/release_memory_occupation": "give memory back",
        "/resume_memory_occupation": "take memory again",
        "/drain": "let what runs come to its end, and pause",
    }
)
"""What is sent to every engine as it came, and what it does there."""

_QUERIED = ("/flush_cache",)  # engines read its arguments from the query too
_OF_UPDATE = ("at_once", "flush_cache", "model_path", "rolling", "take_back", "timeout", "weight_version")
_LARGEST = 1 << 20  # bytes of a body
_PATIENCE = 60.0  # seconds beyond the timeout that a verb carries itself


class _Refused(Exception):
    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def create_fleet_app(
    fleet: Fleet,
    *,
    api_key: str | None = None,
    tend_every: float | None = None,
    adopt: bool = False,
    own_host: Callable[[str], bool] | None = None,
    on_close: Callable[[], Awaitable[None]] | None = None,
) -> Starlette:
    """An ASGI application over a fleet. With ``api_key`` everything but ``/health`` and ``/ready`` demands it.

    Args:
        tend_every: resume an update that was cut short, and then look after the engines every so many seconds;
            ``None``: only when asked to.
        adopt: take what the first engines have as the fleet's weights, where none are known.
        own_host: whether a ``Host`` header names this fleet; without a key nobody is let in under another's name,
            as web pages come whose name was made to lead here. ``None``: any does.
        on_close: awaited when the application ends.
    """

    @contextlib.asynccontextmanager
    async def lifespan(app: Starlette) -> AsyncIterator[None]:
        keeping = (
            None
            if tend_every is None
            else asyncio.ensure_future(Keeper(fleet, every=tend_every, adopt=adopt).run())
        )
        try:
            yield
        finally:
            if keeping is not None:
                keeping.cancel()
                await asyncio.wait((keeping,))
            if on_close is not None:
                await on_close()

    guarded = _Guard(api_key, own_host)
    pages = _Pages(fleet)
    routes = [Route(path, guarded(pages.verb), methods=["POST"]) for path in VERBS]
    routes += [
        Route("/update_weights_from_disk", guarded(pages.update), methods=["POST"]),
        Route("/fleet/adopt", guarded(pages.adopt), methods=["POST"]),
        Route("/fleet/resume", guarded(pages.resume), methods=["POST"]),
        Route("/fleet/tend", guarded(pages.tend), methods=["POST"]),
        Route("/status", guarded(pages.status), methods=["GET"]),
        Route("/list_workers", guarded(pages.workers), methods=["GET"]),
        Route("/metrics", guarded(pages.metrics), methods=["GET"]),
        Route("/health", _health, methods=["GET"]),
        Route("/ready", pages.ready, methods=["GET"]),
        Route("/{path:path}", guarded(_unknown), methods=["GET", "POST", "PUT", "DELETE"]),
    ]
    return Starlette(routes=routes, lifespan=lifespan)


Page = Callable[[Request], Awaitable[Response]]


class _Guard:
    """Lets in who has the key, and turns errors into answers."""

    def __init__(self, api_key: str | None, own_host: Callable[[str], bool] | None) -> None:
        self._key = None if api_key is None else api_key.encode()
        self._own_host = own_host

    def __call__(self, page: Page) -> Page:
        async def guarded(request: Request) -> Response:
            if self._key is not None and not self._proven(request):
                return _error(401, "This fleet asks for its key: Authorization: Bearer KEY.")
            if self._key is None and self._from_a_foreign_name(request):
                return _error(
                    403, "This fleet is not known by that name: --allowed-host, or a key, lets it in."
                )
            if self._from_a_page(request):
                return _error(403, "No web page steers a fleet: this request came from a browser.")
            try:
                return await page(request)
            except ClientDisconnect:
                return _error(499, "The client went away.")  # nobody will see it
            except _Refused as error:
                return _error(error.status, str(error))
            except FleetBusy as error:
                return _error(409, str(error))
            except UnknownMembers as error:
                return _error(503, str(error))
            except RecordNotWritten as error:
                return _error(507, str(error))
            except DeviceKitError as error:
                return _error(400, str(error))

        return guarded

    def _proven(self, request: Request) -> bool:
        sent = request.headers.getlist("authorization")
        scheme, _, given = sent[0].partition(" ") if sent else ("", "", "")
        # Headers are handed over as latin-1, whatever the client wrote.
        key = given.strip().encode("latin-1", "replace")
        same = self._key is not None and hmac.compare_digest(key, self._key)
        # Of several, whoever stands in between may have looked at another one.
        return same and scheme.lower() == "bearer" and len(sent) == 1

    def _from_a_foreign_name(self, request: Request) -> bool:
        named = request.headers.getlist("host")
        return self._own_host is not None and not all(map(self._own_host, named))

    @staticmethod
    def _from_a_page(request: Request) -> bool:
        site = request.headers.get("sec-fetch-site", "none")
        acts = request.method != "GET" or "origin" in request.headers
        return acts and ("origin" in request.headers or site not in ("none", "same-origin"))


class _Pages:
    def __init__(self, fleet: Fleet) -> None:
        self._fleet = fleet
        self._members, self._known = Look(self._look_at_members), Look(fleet.look)

    async def verb(self, request: Request) -> Response:
        """Send the body to every engine as it came, for as long as the client waits."""
        path = _path(request)
        body = await _body(request, queried=path in _QUERIED)
        timeout = _number(body.get("timeout"), "timeout")
        wait = None if timeout is None else timeout + _PATIENCE
        return _reply(await _while_waited_for(request, self._fleet.verb(path, body, timeout=wait)))

    async def update(self, request: Request) -> Response:
        """New weights for all: in two phases, or rolling where ``rolling`` is true."""
        body = await _body(request, _OF_UPDATE)
        path, version = body.get("model_path"), body.get("weight_version")
        if not isinstance(path, str) or not path or not isinstance(version, str) or not version:
            raise _Refused(
                400, "Send model_path, which every engine finds, and weight_version, the name of its weights."
            )
        flags = {
            name: body.get(name, default)
            for name, default in (("flush_cache", True), ("rolling", False), ("take_back", False))
        }
        if wrong := [name for name, value in flags.items() if not isinstance(value, bool)]:
            raise _Refused(400, f"{', '.join(wrong)}: true or false.")
        timeout = _number(body.get("timeout"), "timeout")
        at_once = body.get("at_once", 1)
        if not isinstance(at_once, int) or isinstance(at_once, bool) or not 0 < at_once <= 100_000:
            raise _Refused(400, f"at_once is a number of engines, not {str(at_once)[:100]}.")
        update = FleetUpdate(
            self._fleet,
            take_back=bool(flags["take_back"]),
            at_once=at_once,
            **({} if timeout is None else {"timeout": timeout}),
        )
        run = update.rolling if flags["rolling"] else update.all_at_once
        return _reply(await run(path, version, flush_cache=bool(flags["flush_cache"])))

    async def adopt(self, request: Request) -> Response:
        """Take what all engines serve as the fleet's weights."""
        await _body(request, ())
        return _reply(await _while_waited_for(request, self._fleet.adopt()))

    async def resume(self, request: Request) -> Response:
        """Finish an update that was cut short, or take it back."""
        take_back = (await _body(request, ("take_back",))).get("take_back", False)
        if not isinstance(take_back, bool):
            raise _Refused(400, "take_back: true or false.")
        return _reply(await FleetUpdate(self._fleet, take_back=take_back).resume())

    async def tend(self, request: Request) -> Response:
        """Bring the fleet's weights to engines that lack them."""
        await _body(request, ())
        return _reply(await tend(self._fleet))

    async def status(self, request: Request) -> Response:
        """Every engine side by side."""
        return JSONResponse(describe(self._fleet, await self._members.shared()))

    async def _look_at_members(self) -> list[MemberView]:
        await self._fleet.refresh()
        return await self._fleet.look()

    async def workers(self, request: Request) -> Response:
        """The engines' URLs, as gateways list them."""
        await self._fleet.refresh()
        return JSONResponse({"urls": [one.name for one in self._fleet.endpoints]})

    async def ready(self, request: Request) -> Response:
        """200 exactly if every engine serves the fleet's weights."""
        try:
            views = await self._members.shared()
        except DeviceKitError as error:
            return _error(503, str(error))
        served = self._fleet.file.record.served
        behind = [
            one.member
            for one in views
            if served is None or not one.serving or one.weight_version != served.version
        ]
        return JSONResponse({"ready": not behind, "not_ready": behind}, 503 if behind else 200)

    async def metrics(self, request: Request) -> Response:
        """The engines as gauges."""
        text = await run_in_threadpool(_exposition, await self._known.shared())
        return PlainTextResponse(text, media_type="text/plain; version=0.0.4")


def describe(fleet: Fleet, views: Sequence[MemberView]) -> dict[str, object]:
    """The fleet as JSON: what it must have, and what each engine says."""
    record = fleet.file.record
    return {
        "served": None if record.served is None else dataclasses.asdict(record.served),
        "update": None if record.update is None else dataclasses.asdict(record.update),
        "held": list(record.held),
        "busy": fleet.busy,
        "notes": list(notes(views)),
        "engines": [{**dataclasses.asdict(one), "serving": one.serving} for one in views],
    }


async def _unknown(request: Request) -> Response:
    return _error(
        404,
        f"A fleet has no {request.method} {_path(request)[:200]}. It steers, by {', '.join(VERBS)} and "
        "/update_weights_from_disk, and carries no request of a client: send those to an engine or a gateway.",
    )


async def _health(request: Request) -> Response:
    return JSONResponse({"status": "ok"})


def _exposition(views: Sequence[MemberView]) -> str:
    registry = CollectorRegistry()
    up = Gauge("devicekit_fleet_engine_up", "1 if the engine answers", ["engine"], registry=registry)
    serving = Gauge("devicekit_fleet_engine_serving", "1 if it generates", ["engine"], registry=registry)
    version = Gauge(
        "devicekit_fleet_engine_weights",
        "1 for the version it has",
        ["engine", "weight_version"],
        registry=registry,
    )
    for one in views:
        up.labels(one.member).set(one.reachable)
        serving.labels(one.member).set(one.serving)
        if one.weight_version is not None:
            version.labels(one.member, one.weight_version).set(1)
    return generate_latest(registry).decode()


def _path(request: Request) -> str:
    """As it was sent: that of the URL hangs on what the client says of its host."""
    return str(request.scope["path"])


async def _while_waited_for(request: Request, doing: Coroutine[Any, Any, FleetReply]) -> FleetReply:
    """What comes of it, if the client is there until then. The body must have been read.

    Raises:
        ClientDisconnect: it was given up, as the client went away: engines end what nobody waits for.
    """
    work, leaving = asyncio.ensure_future(doing), asyncio.ensure_future(_left(request))
    try:
        await asyncio.wait((work, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not work.done():
            raise ClientDisconnect
        return work.result()
    finally:
        work.cancel()
        leaving.cancel()
        await asyncio.wait((work, leaving))


async def _left(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def _body(
    request: Request, known: Sequence[str] | None = None, *, queried: bool = False
) -> dict[str, object]:
    """The JSON object that was sent, which has no names but the ``known`` ones; ``None``: whatever it has.

    ``queried``: the query is read as well.
    """
    content = bytearray()
    async for chunk in request.stream():
        content += chunk
        if len(content) > _LARGEST:
            raise _Refused(413, f"A body of a verb has at most {_LARGEST} bytes.")
    kind = request.headers.get("content-type", "").partition(";")[0].strip()
    if content and kind != "application/json":
        raise _Refused(415, "Send JSON with Content-Type: application/json.")
    try:
        body = parse_sent(bytes(content)) if content else {}
    except UnreadableDocument as error:
        raise _Refused(400, f"The body is not JSON that can be read: {error}") from error
    for name, value in request.query_params.multi_items():
        if not queried:
            raise _Refused(400, f"{shown(name)} belongs in the body here, not in the query.")
        if name in body:
            raise _Refused(400, f"{shown(name)} is given twice.")
        body[name] = value
    if known is not None and (unknown := sorted(set(body) - set(known))):
        takes = ", ".join(known) or "nothing"
        raise _Refused(400, f"{_path(request)} knows no {shown(unknown)}; it takes {takes}.")
    return body


def _number(value: object, name: str) -> float | None:
    if value is None:
        return None
    try:
        number = finite_number(float(value) if isinstance(value, str) else value)  # a query has texts alone
    except ValueError as error:
        raise _Refused(400, f"{name} is a number of seconds, not {shown(value)}.") from error
    if not 0 <= number < 1e6:
        raise _Refused(400, f"{name} is a number of seconds from 0 to a million, not {shown(value)}.")
    return number


def _reply(reply: FleetReply) -> Response:
    return JSONResponse(as_document(reply), 200 if reply.success else 400)


def as_document(reply: FleetReply) -> dict[str, object]:
    """A reply as JSON; the engines' whole answers are left out."""
    document = dataclasses.asdict(reply)
    document["engines"] = [
        {"engine": one.member, "success": one.success, "status": one.status, "message": one.message}
        for one in reply.outcomes
    ]
    del document["outcomes"]
    return document


def _error(status: int, message: str) -> Response:
    return JSONResponse(
        {"success": False, "message": message, "error": {"message": message, "code": status}}, status
    )
