"""Flush, pause, continue, abort."""

from __future__ import annotations

from collections.abc import Mapping
from types import MappingProxyType
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from devicekit.release import ReleaseEntry
from devicekit.scheduling.messages import (
    Abort,
    AbortReply,
    Continue,
    Drain,
    DrainReply,
    Flush,
    FlushReply,
    Pause,
    PauseMode,
    PauseReply,
    Refusal,
    Reply,
)
from devicekit.server.endpoints import Arguments, Endpoint, Finite
from devicekit.server.errors import BadRequest, bounded
from devicekit.server.keys import Access
from devicekit.server.serving import Serving


class FlushArguments(Arguments):
    """Query of ``/flush_cache``."""

    timeout: Annotated[Finite, Field(ge=0)] = Field(
        0.0, description="seconds to wait for the engine to be idle"
    )
    empty_cache: bool | None = Field(
        None, description="also hand unused memory back to the driver; default: yes"
    )


class PauseArguments(Arguments):
    """Body of ``/pause_generation``."""

    mode: PauseMode = PauseMode.ABORT
    continue_after: Finite | None = Field(
        default=None, gt=0, description="seconds after which it ends by itself"
    )


class DrainArguments(Arguments):
    """Body of ``/drain``."""

    timeout: Finite | None = Field(default=None, ge=0, description="seconds; default: as long as it takes")


class ContinueArguments(Arguments):
    """Body of ``/continue_generation``."""

    torch_empty_cache: bool | None = Field(
        None, description="hand unused memory back to the driver; default: yes"
    )


class AbortArguments(Arguments):
    """Body of ``/abort_request``."""

    needs = MappingProxyType({"exact": "rid"})

    rid: str | None = Field(default=None, description="ends every request whose id begins with this")
    exact: bool = Field(False, description="end only the request that has this very id")
    abort_all: bool = False


async def flush(serving: Serving, arguments: FlushArguments, request: Request) -> Response:
    """Forget every cached prefix."""
    operation = Flush(serving.next_id(), arguments.timeout, arguments.empty_cache)
    reply = await serving.perform(operation, FlushReply)
    return answer(reply, pages_freed=reply.pages_freed)


async def pause(serving: Serving, arguments: PauseArguments, request: Request) -> Response:
    """Start no forward pass until generation is continued."""
    reply = await serving.perform(
        Pause(serving.next_id(), arguments.mode, arguments.continue_after), PauseReply
    )
    return _state(reply, "Generation paused successfully.", aborted=reply.aborted, retracted=reply.retracted)


async def resume(serving: Serving, arguments: ContinueArguments, request: Request) -> Response:
    """End a pause."""
    operation = Continue(serving.next_id(), arguments.torch_empty_cache)
    reply = await serving.perform(operation, PauseReply)
    return _state(reply, "Generation continued successfully.")


async def drain(serving: Serving, arguments: DrainArguments, request: Request) -> Response:
    """Let what runs come to its end, take nothing new, and pause."""
    with serving.drains.draining() as answered:
        reply = await serving.perform(Drain(serving.next_id(), arguments.timeout), DrainReply)
        answered(reply)
    return answer_by_kind(
        reply, remaining_requests=reply.remaining, waiting_requests=reply.waiting, epoch=reply.epoch
    )


async def abort(serving: Serving, arguments: AbortArguments, request: Request) -> Response:
    """End requests."""
    if not arguments.abort_all and not arguments.rid:
        raise BadRequest("Send the rid of a request, or abort_all.")
    named = None if arguments.abort_all else arguments.rid
    operation = Abort(
        serving.next_id(),
        request_id=named if arguments.exact else None,
        prefix=None if arguments.exact else named,
        all=arguments.abort_all,
    )
    reply = await serving.perform(operation, AbortReply)
    return answer(reply, aborted=reply.aborted)


# Where no client of another engine expects 400 for everything. Not 408, which some clients answer by asking again.
_STATUS: Mapping[Refusal | None, int] = MappingProxyType(
    {
        Refusal.BUSY: 409,
        Refusal.TIMED_OUT: 409,
        Refusal.WITHDRAWN: 409,
        Refusal.CONFLICT: 409,
        Refusal.UNSUPPORTED: 501,
    }
)


def answer_by_kind(reply: Reply, **more: object) -> JSONResponse:
    """As `answer`, but what was refused for the state of things is 409, and what cannot be done here is 501."""
    return _answer(reply, _STATUS.get(reply.refusal, 400), more)


def answer(reply: Reply, **more: object) -> JSONResponse:
    """An operation's reply: 200 exactly if it succeeded, 400 otherwise."""
    return _answer(reply, 400, more)


def _answer(reply: Reply, refused: int, more: Mapping[str, object]) -> JSONResponse:
    document = {"success": reply.success, "message": bounded(reply.message), **details(reply), **more}
    if reply.success:
        return JSONResponse(document)
    return JSONResponse({**document, "error": refused_error(reply, refused)}, refused)


def refused_error(reply: Reply, status: int) -> Mapping[str, object]:
    """The ``error`` object of a refusal: as of every other error, with the kind of refusal as its type."""
    kind = "failed" if reply.refusal is None else reply.refusal.value
    return {"message": bounded(reply.message), "type": kind, "param": None, "code": status}


def details(reply: Reply) -> Mapping[str, object]:
    """What every reply tells: what stood in the way, how long it took, what memory came back."""
    return {
        "blockers": [{"name": one.name, "count": one.count} for one in reply.blockers],
        "seconds": reply.seconds,
        "refusal": None if reply.refusal is None else reply.refusal.value,
        "release": _release(reply.release),
    }


def _state(reply: PauseReply, done: str, **more: object) -> JSONResponse:
    document = {"status": "ok", "epoch": reply.epoch, "changed": reply.changed, **details(reply), **more}
    if not reply.success:
        document |= {"status": "error", "message": bounded(reply.message), "error": refused_error(reply, 400)}
        return JSONResponse(document, 400)
    return JSONResponse({"message": done, **document})


def _release(entry: ReleaseEntry | None) -> Mapping[str, object] | None:
    if entry is None:
        return None
    return {
        "point": entry.point.value,
        "emptied": entry.emptied,
        "reason": entry.reason,
        "reserved_before": entry.reserved_before,
        "reserved_after": entry.reserved_after,
        "released": entry.released,
        "seconds": entry.seconds,
        "error": entry.error or None,
    }


ENDPOINTS = (
    Endpoint(
        "/flush_cache",
        flush,
        FlushArguments,
        "Forget every cached prefix; refused while requests run.",
        methods=("GET", "POST"),
        access=Access.CONTROL,
        in_query=True,
        tag="control",
    ),
    Endpoint(
        "/pause_generation",
        pause,
        PauseArguments,
        "Start no forward pass until generation is continued.",
        access=Access.CONTROL,
        tag="control",
    ),
    Endpoint(
        "/continue_generation",
        resume,
        ContinueArguments,
        "End a pause.",
        access=Access.CONTROL,
        tag="control",
    ),
    Endpoint(
        "/drain",
        drain,
        DrainArguments,
        "Let what runs come to its end, take nothing new (503), and pause.",
        access=Access.CONTROL,
        tag="control",
    ),
    Endpoint("/abort_request", abort, AbortArguments, "End requests.", access=Access.CONTROL, tag="control"),
)
