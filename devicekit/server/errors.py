"""Errors that a request over HTTP can end with, and the one form in which all of them are sent.

::

    DeviceKitError
    ├── HttpError           has ``status``
    │   ├── BadRequest          400: what was sent makes no sense
    │   ├── Unauthorized        401: a key is missing or wrong
    │   ├── Forbidden           403: asked for by a web page of another origin, or under a foreign name
    │   ├── NotFound            404
    │   ├── BodyTooLarge        413
    │   ├── NotJson             415: the body says that it is something else
    │   ├── TooManyRequests     429: try again later
    │   ├── Unavailable         503: weights are missing, or memory is given back
    │   ├── Overloaded          503: try again later
    │   └── ClientGone          499: nobody will see it
    └── EngineStopped       503: the engine's thread has ended; everyone who waits is told why
"""

from __future__ import annotations

from typing import ClassVar

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import JSONResponse

from devicekit.contract.errors import DeviceKitError

_LONGEST_MESSAGE = 2000  # characters


class HttpError(DeviceKitError):
    """An error with an HTTP status of its own."""

    status: ClassVar[int] = 500
    kind: ClassVar[str] = "server_error"


class BadRequest(HttpError):
    """The request makes no sense."""

    status = 400
    kind = "invalid_request_error"


class Unauthorized(HttpError):
    """A key is missing or wrong."""

    status = 401
    kind = "authentication_error"


class Forbidden(HttpError):
    """The request comes from a place that is not allowed."""

    status = 403
    kind = "permission_error"


class BodyTooLarge(HttpError):
    """The request's body is longer than this server reads."""

    status = 413
    kind = "invalid_request_error"


class NotJson(HttpError):
    """The body says that it is something else than JSON."""

    status = 415
    kind = "invalid_request_error"


class TooManyRequests(HttpError):
    """The server has as many requests as it takes. Trying again later may succeed."""

    status = 429
    kind = "rate_limit_error"


class NotFound(HttpError):
    """What was asked for does not exist."""

    status = 404
    kind = "invalid_request_error"


class Unavailable(HttpError):
    """Nothing can be generated now, for another reason than load."""

    status = 503


class Overloaded(HttpError):
    """The server is at its limit. Trying again later may succeed."""

    status = 503


class ClientGone(HttpError):
    """Nobody is there to read the answer any more."""

    status = 499
    kind = "invalid_request_error"


class EngineStopped(DeviceKitError):
    """The engine's thread has ended, by request or by a fault."""


def error_response(error: DeviceKitError, *, verb: bool = False) -> JSONResponse:
    """The response for an error.

    Args:
        verb: of an operation, whose clients look for ``success`` and ``message``.
    """
    if isinstance(error, HttpError):
        return error_body(error.status, str(error), error.kind, verb=verb)
    if isinstance(error, EngineStopped):
        return error_body(503, str(error), "server_error", verb=verb)
    return error_body(400, str(error), "invalid_request_error", verb=verb)


def bounded(message: str) -> str:
    """A message cut to a bounded length, since it may quote what was sent."""
    return message if len(message) <= _LONGEST_MESSAGE else f"{message[:_LONGEST_MESSAGE]}…"


def error_body(status: int, message: str, kind: str = "server_error", *, verb: bool = False) -> JSONResponse:
    """An error in the one shape that all of them have."""
    headers = {}
    if status == 401:
        headers["WWW-Authenticate"] = "Bearer"
    elif status in (429, 503):
        headers["Retry-After"] = "1"
    message = bounded(message)
    error = {"message": message, "type": kind, "param": None, "code": status}
    told = {"success": False, "message": message} if verb else {}
    return JSONResponse({**told, "error": error}, status, headers)


async def on_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Unknown paths and methods, in the same shape."""
    if not isinstance(error, HTTPException):
        raise error
    message = f"{request.method} {request.scope['path']}: {error.detail}"
    response = error_body(error.status_code, message, "invalid_request_error")
    response.headers.update(error.headers or {})
    return response


async def on_fault(request: Request, error: Exception) -> JSONResponse:
    """A fault of this server's own."""
    message = f"{request.method} {request.scope['path']} failed: {type(error).__name__}"
    return error_body(500, message)
