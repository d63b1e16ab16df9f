"""What an endpoint is: a path, who may call it, what it reads, and the function that answers."""

from __future__ import annotations

import asyncio
import itertools
import json
import re
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Generic, NoReturn, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator
from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response
from starlette.routing import Route

from devicekit.contract.errors import DeviceKitError
from devicekit.server.errors import BadRequest, BodyTooLarge, ClientGone, NotJson, error_response
from devicekit.server.fields import REFUSED, asks_for_something, unknown_fields
from devicekit.server.keys import Access
from devicekit.server.serving import Serving

_LONG = 256 << 10  # bytes of a body
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")  # of an argument that nobody knows, and that a header may carry
_JSON_KIND = re.compile(r"application/[a-z0-9.-]+\+json")
_ARGUMENT = re.compile(r"[a-z0-9_]+")
_MOST_UNKNOWN = 1000  # fields that are looked at
_SIMPLE_TYPES = frozenset({"str", "int", "float", "bool"})

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A number: neither infinite nor NaN."""

Label = Annotated[str, Field(max_length=1000)]
"""A name that somebody gives to something. It comes back in many answers, hence no longer than it has to be."""


class Arguments(BaseModel):
    """What an endpoint reads.

    Unknown keys are let pass, as clients of other engines send more than we know, and the answer names them in a
    header; but those that would change the answer are refused (`devicekit.server.fields`). An explicit null is the
    same as a field that was not sent.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    takes_anything: ClassVar[bool] = False  # what no field takes has a meaning all the same

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        fields = cls.model_fields
        return {
            name: value
            for name, value in given.items()
            if value is not None or name not in fields or fields[name].is_required()
        }


A = TypeVar("A", bound=Arguments)
Handler = Callable[[Serving, A, Request], Awaitable[Response]]


@dataclass(frozen=True, slots=True)
class Endpoint(Generic[A]):
    """One endpoint.

    Args:
        path: and further names of the same thing, for clients that use those.
        handler: answers. A DeviceKitError that it raises becomes an error response.
        arguments: read from the body, or from the query.
        access: who may call it.
        in_query: read the arguments from the query too, whatever the body says. A GET without a body is read from
            there anyway.
    """

    path: str
    handler: Handler[A]
    arguments: type[A]
    summary: str
    access: Access
    methods: tuple[str, ...] = ("POST",)
    in_query: bool = False
    aliases: tuple[str, ...] = ()
    tag: str = "information"

    def routes(self) -> list[Route]:
        """The endpoint for Starlette, under all its names."""
        routes = [
            Route(path, self._answer, methods=list(self.methods)) for path in (self.path, *self.aliases)
        ]
        if self.access is Access.CONTROL:
            # Starlette adds HEAD to every GET. Whoever only asks for headers does not expect them to act.
            for route in routes:
                (route.methods or set()).discard("HEAD")
        return routes

    async def _answer(self, request: Request) -> Response:
        serving: Serving = request.app.state.serving
        try:
            self._let_in(serving, request)
            arguments, ignored = await self._read(request, serving.settings.max_body_bytes)
            response = await self.handler(serving, arguments, request)
        except DeviceKitError as error:
            return error_response(error, verb=self.access is Access.CONTROL)
        if ignored:
            response.headers["X-Devicekit-Ignored"] = ignored
        return response

    def _let_in(self, serving: Serving, request: Request) -> None:
        headers, access = request.headers, self.access
        steering = access is Access.CONTROL
        serving.origins.require_own_page(headers, steering=steering, navigable=access is Access.OPEN)
        if steering and request.method == "GET":
            serving.origins.require_no_page(headers)
        proven = serving.keys.check(access, headers)
        # A page that came by a foreign name has no key.
        if access is not Access.OPEN and not proven:
            serving.origins.require_own_host(headers)

    async def _read(self, request: Request, limit: int) -> tuple[A, str]:
        body = await _read_body(request, limit)
        if body.strip() and not _may_be_json(request.headers.getlist("content-type")):
            raise NotJson("This endpoint reads JSON: send it with Content-Type: application/json.")
        asking = request.method == "GET" and not body
        query = dict(request.query_params) if self.in_query or asking else {}
        if len(body) <= _LONG:
            return self._understand(body, query)
        # Away from the event loop, where it would hold up everybody else.
        return await asyncio.get_running_loop().run_in_executor(None, self._understand, body, query)

    def _understand(self, body: bytes, query: dict[str, str]) -> tuple[A, str]:
        """The arguments, and the names of what was given besides, which means nothing here."""
        given = {**_parse(body), **query}
        try:
            arguments = self.arguments.model_validate(given)
        except ValidationError as error:
            raise BadRequest(_describe(error)) from error
        unknown = [*itertools.islice(unknown_fields(arguments), _MOST_UNKNOWN)]
        refused = [
            place for place, name, value in unknown if name in REFUSED and asks_for_something(name, value)
        ]
        if refused:
            raise BadRequest(f"This engine does not support {', '.join(refused)}.")
        return arguments, ", ".join(place for place, _, _ in unknown[:20] if _NAME.fullmatch(place))


def _may_be_json(types: list[str]) -> bool:
    """Whether no header says that a body is anything else. Forms of web pages always say what they are."""
    for one in types:
        kind = one.partition(";")[0].strip().lower()
        if kind not in ("application/json", "text/json") and not _JSON_KIND.fullmatch(kind):
            return False
    return True


async def _read_body(request: Request, limit: int) -> bytes:
    announced = request.headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limit:
        raise BodyTooLarge(f"The body has {announced} bytes; this server reads {limit}.")
    parts: list[bytes] = []
    size = 0
    try:
        async for part in request.stream():
            size += len(part)
            if size > limit:
                raise BodyTooLarge(f"The body has more than {limit} bytes.")
            parts.append(part)
    except ClientDisconnect as error:
        raise ClientGone("The client went away.") from error
    return b"".join(parts)


def _parse(body: bytes) -> dict[str, object]:
    """The JSON object in a body; an absent body is an empty object."""
    if not body.strip():
        return {}
    try:
        document = json.loads(body, parse_constant=_refuse_constant)
        if b"\\u" in body:
            json.dumps(document, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise BadRequest(f"The body is not JSON that can be read: {error}") from error
    if not isinstance(document, dict):
        raise BadRequest("The body is not a JSON object.")
    return document


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def _describe(error: ValidationError) -> str:
    """Everything that is wrong, in one line. What was sent is not repeated: it may be long."""
    found = [(_place(one["loc"]), one["msg"]) for one in error.errors(include_url=False)]
    # Where an argument has several forms, each was tried. What is wrong within the one that was given counts.
    places = {place[:length] for place, _ in found for length in range(len(place))}
    parts = [f"{'.'.join(place) or 'body'}: {message}" for place, message in found if place not in places]
    return "; ".join([*dict.fromkeys(parts)][:10])


def _place(location: tuple[int | str, ...]) -> tuple[str, ...]:
    """The names and indices that lead to an argument, without the types that were tried on the way."""
    return tuple(str(part) for part in location if isinstance(part, int) or _is_name(part))


def _is_name(part: str) -> bool:
    return _ARGUMENT.fullmatch(part) is not None and part not in _SIMPLE_TYPES
