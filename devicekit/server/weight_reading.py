"""Looking at weights over HTTP: values by name, digests, and renaming their version."""

from __future__ import annotations

import asyncio
import math
from dataclasses import replace
from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse
from starlette.types import Receive, Scope, Send

from devicekit.contract.text import shown
from devicekit.scheduling.messages import Refusal, Selector
from devicekit.server.answers import respond
from devicekit.server.control import answer, answer_by_kind
from devicekit.server.endpoints import Arguments, Endpoint, Label
from devicekit.server.errors import BadRequest, TooManyRequests
from devicekit.server.keys import Access
from devicekit.server.serving import Serving
from devicekit.weights.operations import (
    ChecksumReply,
    ChecksumWeights,
    GetWeights,
    UpdateWeightVersion,
    VersionReply,
    WeightsReply,
)
from devicekit.weights.peer import MOST_NAMES, READ_WEIGHTS
from devicekit.weights.reading import whole_bytes

_MOST_VALUES = 4_000_000  # in one answer
_MOST_BYTES = 256 << 20  # of weights in one answer, unless it is one weight
_AT_ONCE = 4  # answers under way that hold weights
_PIECE = 1 << 20  # bytes that are sent at once


class GetWeightsArguments(Arguments):
    """Body of ``/get_weights_by_name``."""

    name: str
    truncate_size: Annotated[int, Field(ge=0, le=10_000)] = Field(default=100, description="rows")


class ReadWeightsArguments(Arguments):
    """Body of ``/read_weights``."""

    names: Annotated[list[Label], Field(min_length=1, max_length=MOST_NAMES)]
    weight_version: Label | None = Field(
        None, description="that the weights must be of; default: whatever is served"
    )


class CheckerArguments(Arguments):
    """Body of ``/weights_checker``."""

    action: Literal["checksum"] = "checksum"
    selector: Selector = Selector.TARGET


class VersionArguments(Arguments):
    """Body of ``/update_weight_version``."""

    new_version: Annotated[Label, Field(min_length=1)]
    abort_all_requests: bool = True


async def get_weights(serving: Serving, arguments: GetWeightsArguments, request: Request) -> Response:
    """The first rows of a weight."""
    operation = GetWeights(serving.next_id(), (arguments.name,), arguments.truncate_size)
    reply = await serving.perform(operation, WeightsReply)
    if not reply.success:
        raise BadRequest(reply.message)
    [weight] = reply.weights
    numbers = weight.values
    if numbers.numel() > _MOST_VALUES:
        raise BadRequest(
            f"{arguments.truncate_size} rows of {arguments.name!r:.200} are {numbers.numel()} numbers; "
            f"this server gives {_MOST_VALUES} at once. Ask for fewer rows."
        )
    return await respond(numbers.numel(), lambda: _finite(numbers.float().tolist()))


async def read_weights(serving: Serving, arguments: ReadWeightsArguments, request: Request) -> Response:
    """Weights as they are, as safetensors: whole, and all of one version."""
    names = tuple(dict.fromkeys(arguments.names))
    size = whole_bytes(serving.engine.weights.store, names, Selector.TARGET)
    if size > _MOST_BYTES and len(names) > 1:
        raise BadRequest(
            f"Those are {size} bytes of weights; this server gives {_MOST_BYTES} at once, or one weight of any "
            "size. Ask for fewer."
        )
    if serving.lent >= _AT_ONCE:
        raise TooManyRequests(f"This engine gives weights to {serving.lent} others now.")
    serving.lent += 1
    try:
        reply = await serving.perform(GetWeights(serving.next_id(), names), WeightsReply)
        wanted = arguments.weight_version
        if not reply.success:
            response: Response = answer_by_kind(reply)
        elif wanted is not None and wanted != reply.weight_version:
            message = f"The weights here are {shown(reply.weight_version)}, not {shown(wanted)}."
            response = answer_by_kind(
                replace(reply, success=False, message=message, refusal=Refusal.CONFLICT)
            )
        else:
            loop = asyncio.get_running_loop()
            content = await loop.run_in_executor(None, _as_safetensors, reply)
            return _Lent(serving, content)
    except BaseException:
        serving.lent -= 1
        raise
    serving.lent -= 1
    return response


class _Lent(StreamingResponse):
    """An answer that holds weights until it is sent, or nobody reads it any more."""

    def __init__(self, serving: Serving, content: bytes) -> None:
        pieces = (content[at : at + _PIECE] for at in range(0, len(content), _PIECE))
        headers = {"Content-Length": str(len(content))}
        super().__init__(pieces, media_type="application/octet-stream", headers=headers)
        self._serving = serving

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._serving.lent -= 1


def _as_safetensors(reply: WeightsReply) -> bytes:
    from safetensors.torch import save

    return bytes(save({one.name: one.values.contiguous() for one in reply.weights}))


async def checksum(serving: Serving, arguments: CheckerArguments, request: Request) -> Response:
    """Digests of all weights."""
    operation = ChecksumWeights(serving.next_id(), arguments.selector)
    reply = await serving.perform(operation, ChecksumReply)
    ranks: list[dict[str, object]] = [
        {"rank": rank, "checksum": total} for rank, total in enumerate(reply.ranks)
    ]
    for one in ranks:
        if one["checksum"] == reply.total:  # rank 0's; those of others are known where they are the same
            one["tensors"] = dict(reply.tensors)
    return answer(reply, ranks=ranks, per_engine_checksum=reply.total, weight_version=reply.weight_version)


async def rename(serving: Serving, arguments: VersionArguments, request: Request) -> Response:
    """Give the weights another name; they stay what they are."""
    operation = UpdateWeightVersion(serving.next_id(), arguments.new_version, arguments.abort_all_requests)
    reply = await serving.perform(operation, VersionReply)
    return answer(reply, new_version=reply.weight_version, aborted=reply.aborted)


def _finite(value: object) -> object:
    """The same, with null for what JSON has no number for."""
    if isinstance(value, list):
        return [_finite(one) for one in value]
    return value if isinstance(value, float) and math.isfinite(value) else None


ENDPOINTS = (
    Endpoint(
        "/get_weights_by_name",
        get_weights,
        GetWeightsArguments,
        "The first rows of a weight.",
        methods=("GET", "POST"),
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        READ_WEIGHTS,
        read_weights,
        ReadWeightsArguments,
        "Whole weights as safetensors, for an engine of the same model.",
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        "/weights_checker",
        checksum,
        CheckerArguments,
        "Digests of all weights.",
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        "/update_weight_version",
        rename,
        VersionArguments,
        "Give the weights another name.",
        access=Access.CONTROL,
        tag="weights",
    ),
)
