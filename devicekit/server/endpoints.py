"""What an endpoint is: a path, who may call it, what it reads, and the function that answers."""

from __future__ import annotations

import asyncio
import itertools
import re
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Generic, TypeVar

from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from devicekit.contract.errors import DeviceKitError
from devicekit.contract.text import shown
from devicekit.server.absence import listening
from devicekit.server.arguments import Arguments, Finite, Label
from devicekit.server.bodies import Body, parse
from devicekit.server.errors import BadRequest, error_response
from devicekit.server.fields import refused, unknown_fields, without_ground
from devicekit.server.keys import Access
from devicekit.server.serving import Serving

__all__ = ["Arguments", "Endpoint", "Finite", "Handler", "Label"]

GENERATION = "generation"
"""The tag of endpoints that make the engine generate."""

_LONG = 32 << 10  # bytes of a body
_NAME = re.compile(r"[A-Za-z0-9_.-]{1,60}")  # of an argument that nobody knows, and that a header may carry
_ARGUMENT = re.compile(r"[a-z0-9_]+")
_MOST_UNKNOWN = 1000  # fields that are looked at
_NOTHING: Mapping[str, str] = MappingProxyType({})
_SIMPLE_TYPES = frozenset({"str", "int", "float", "bool"})

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
            with serving.bodies.reading() as body:
                arguments, ignored = await self._read(request, body)
                if self.access is Access.CONTROL:
                    with listening(request):
                        response = await self.handler(serving, arguments, request)
                else:
                    response = await self.handler(serving, arguments, request)
        except DeviceKitError as error:
            return error_response(error, verb=self.access is Access.CONTROL)
        if ignored:
            response.headers["X-Devicekit-Ignored"] = ignored
        return response

    def _let_in(self, serving: Serving, request: Request) -> None:
        if self.tag == GENERATION:
            serving.require_open()
        headers, access = request.headers, self.access
        steering = access is Access.CONTROL
        serving.origins.require_own_page(headers, steering=steering, navigable=access is Access.OPEN)
        if steering and request.method == "GET":
            serving.origins.require_no_page(headers)
        proven = serving.keys.check(access, headers)
        # A page that came by a foreign name has no key.
        if access is not Access.OPEN and not proven:
            serving.origins.require_own_host(headers)

    async def _read(self, request: Request, body: Body) -> tuple[A, str]:
        content = await body.read(request)
        asking = request.method == "GET" and not content
        query: dict[str, str] = {}
        if self.in_query or asking:
            query = _each_once(request)
        else:
            self._refuse_in_query(request.query_params)
        elsewhere = request.app.state.meanings if self.tag == GENERATION else _NOTHING
        if len(content) <= _LONG:
            return self._understand(content, query, elsewhere)
        # Away from the event loop, where it would hold up everybody else.
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(None, self._understand, content, query, elsewhere)

    def _refuse_in_query(self, query: Mapping[str, str]) -> None:
        """What means something in the body would go unheard in the query; what means nothing may stand there."""
        fields = self.arguments.model_fields
        if misplaced := sorted(
            query.keys() & {*fields, *(one.alias for one in fields.values() if one.alias)}
        ):
            raise BadRequest(f"{', '.join(misplaced)} belongs in the body here, not in the query.")

    def _understand(
        self, body: bytes, query: dict[str, str], elsewhere: Mapping[str, str] = _NOTHING
    ) -> tuple[A, str]:
        """The arguments, and the names of what was given besides, which means nothing here."""
        given = parse(body)
        if twice := sorted(query.keys() & given.keys()):
            raise BadRequest(f"{', '.join(twice)} is given twice, in the query and in the body.")
        given.update(query)
        try:
            arguments = self.arguments.model_validate(given)
        except ValidationError as error:
            raise BadRequest(_describe(error)) from error
        if said := [*without_ground(arguments)]:
            raise BadRequest(f"{'; '.join(said)}.")
        unknown = [*itertools.islice(unknown_fields(arguments), _MOST_UNKNOWN)]
        if places := refused(unknown, elsewhere):
            raise BadRequest(f"This engine does not support {', '.join(places)} here.")
        return arguments, ", ".join(place for place, _, _ in unknown[:20] if _NAME.fullmatch(place))


def _each_once(request: Request) -> dict[str, str]:
    """The query, of which no name may come twice."""
    given = dict(request.query_params)
    if len(given) != len(request.query_params.multi_items()):
        counted = Counter(name for name, _ in request.query_params.multi_items())
        raise BadRequest(f"The query has {shown(counted.most_common(1)[0][0])} twice.")
    return given


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
