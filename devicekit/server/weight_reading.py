"""Looking at weights over HTTP: values by name, digests, and renaming their version."""

from __future__ import annotations

import math
from typing import Annotated, Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from devicekit.scheduling.messages import Selector
from devicekit.server.answers import respond
from devicekit.server.control import answer
from devicekit.server.endpoints import Arguments, Endpoint, Label
from devicekit.server.errors import BadRequest
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

_MOST_VALUES = 4_000_000  # in one answer


class GetWeightsArguments(Arguments):
    """Body of ``/get_weights_by_name``."""

    name: str
    truncate_size: Annotated[int, Field(ge=0, le=10_000)] = Field(default=100, description="rows")


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
