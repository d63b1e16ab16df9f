"""The description of the API in OpenAPI, made from the endpoints themselves, and a page that shows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from pydantic.json_schema import models_json_schema
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from devicekit import __version__
from devicekit.server.endpoints import Arguments, Endpoint
from devicekit.server.keys import Access
from devicekit.server.serving import Serving
from devicekit.server.status import page

_REFERENCE = "#/components/schemas/{model}"
_ERROR = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {"type": "object", "required": ["message"], "properties": {"message": {"type": "string"}}}
    },
}


def describe(endpoints: Sequence[Endpoint[Any]]) -> dict[str, object]:
    """The OpenAPI document of these endpoints."""
    bodies = list(dict.fromkeys(one.arguments for one in endpoints if not one.in_query))
    _, definitions = models_json_schema([(one, "validation") for one in bodies], ref_template=_REFERENCE)
    paths: dict[str, dict[str, object]] = {}
    for endpoint in endpoints:
        for path in (endpoint.path, *endpoint.aliases):
            shown = path.replace(":path}", "}")
            paths[shown] = {
                method.lower(): _operation(endpoint, shown, method) for method in endpoint.methods
            }
    return {
        "openapi": "3.1.0",
        "info": {"title": "devicekit", "version": __version__},
        "paths": paths,
        "components": {
            "schemas": {**definitions.get("$defs", {}), "Error": _ERROR},
            "securitySchemes": {"key": {"type": "http", "scheme": "bearer"}},
        },
    }


def _operation(endpoint: Endpoint[Any], path: str, method: str) -> dict[str, object]:
    words = re.sub(r"[/{}]+", "_", path).strip("_") or "page"
    error = {
        "description": "refused",
        "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}},
    }
    operation: dict[str, object] = {
        "operationId": f"{method.lower()}_{words}",
        "summary": endpoint.summary,
        "tags": [endpoint.tag],
        "responses": {"200": {"description": "success"}, "default": error},
    }
    if endpoint.access is not Access.OPEN:
        operation["security"] = [{"key": []}, {}]
    if endpoint.in_query or method == "GET":
        operation["parameters"] = [*_in_path(path), *_parameters(endpoint.arguments)]
    else:
        name = endpoint.arguments.__name__
        schema = {"$ref": _REFERENCE.format(model=name)}
        required = any(field.is_required() for field in endpoint.arguments.model_fields.values())
        operation["requestBody"] = {"required": required, "content": {"application/json": {"schema": schema}}}
    return operation


def _in_path(path: str) -> list[dict[str, object]]:
    names = re.findall(r"{([a-z_]+)}", path)
    return [{"name": one, "in": "path", "required": True, "schema": {"type": "string"}} for one in names]


def _parameters(arguments: type[Arguments]) -> list[dict[str, object]]:
    schema = arguments.model_json_schema()
    return [
        {"name": name, "in": "query", "required": name in schema.get("required", ()), "schema": one}
        for name, one in schema.get("properties", {}).items()
    ]


async def document(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """The OpenAPI document."""
    return JSONResponse(request.app.state.openapi)


async def docs(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """A page that shows the OpenAPI document."""
    return page("docs.html")


ENDPOINTS = (
    Endpoint(
        "/openapi.json",
        document,
        Arguments,
        "This description.",
        methods=("GET",),
        access=Access.OPEN,
        in_query=True,
    ),
    Endpoint(
        "/docs",
        docs,
        Arguments,
        "This description, to read.",
        methods=("GET",),
        access=Access.OPEN,
        in_query=True,
    ),
)
