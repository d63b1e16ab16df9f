"""What a fleet asks of one engine: an update in two phases, and to serve once it has the fleet's weights."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from devicekit.scheduling.messages import Selector, UpdateReply
from devicekit.server.control import answer_by_kind
from devicekit.server.endpoints import Arguments, Endpoint, Label
from devicekit.server.keys import Access
from devicekit.server.serving import Serving
from devicekit.server.weights import UpdateArguments
from devicekit.weights.operations import (
    CommitWeights,
    DiscardWeights,
    JoinFleet,
    PreparedReply,
    PrepareWeights,
)

UpdateId = Annotated[Label, Field(min_length=1, description="the caller's name for the update")]


class PrepareArguments(Arguments):
    """Body of ``/prepare_weight_update``."""

    update_id: UpdateId
    model_path: str
    selector: Selector = Selector.ALL


class CommitArguments(UpdateArguments):
    """Body of ``/commit_weight_update``."""

    update_id: UpdateId


class DiscardArguments(Arguments):
    """Body of ``/discard_weight_update``."""

    update_id: UpdateId


class JoinArguments(Arguments):
    """Body of ``/join_fleet``."""

    weight_version: Annotated[Label, Field(min_length=1)]
    checksum: Label | None = Field(
        None, description="per_engine_checksum of /weights_checker; default: not compared"
    )


async def prepare(serving: Serving, arguments: PrepareArguments, request: Request) -> Response:
    """Read a checkpoint of the server's disk and check that it fits; nothing is written."""
    path = serving.weights_roots.confine(arguments.model_path)
    operation = PrepareWeights(serving.next_id(), arguments.update_id, str(path), arguments.selector)
    return _answer(await serving.perform(operation, PreparedReply))


async def commit(serving: Serving, arguments: CommitArguments, request: Request) -> Response:
    """Write what was prepared."""
    operation = CommitWeights(serving.next_id(), **arguments.common(), update_id=arguments.update_id)
    reply = await serving.perform(operation, UpdateReply)
    return answer_by_kind(
        reply,
        outcome=reply.outcome.value,
        weight_version=reply.weight_version,
        tensors=reply.tensors,
        bytes=reply.bytes,
    )


async def discard(serving: Serving, arguments: DiscardArguments, request: Request) -> Response:
    """Forget what was prepared."""
    operation = DiscardWeights(serving.next_id(), arguments.update_id)
    return _answer(await serving.perform(operation, PreparedReply))


async def join(serving: Serving, arguments: JoinArguments, request: Request) -> Response:
    """Generate, if the weights are the fleet's."""
    operation = JoinFleet(serving.next_id(), arguments.weight_version, arguments.checksum)
    return _answer(await serving.perform(operation, PreparedReply))


def _answer(reply: PreparedReply) -> Response:
    return answer_by_kind(
        reply, update_id=reply.update_id, tensors=reply.tensors, weight_version=reply.weight_version
    )


ENDPOINTS = (
    Endpoint(
        "/prepare_weight_update",
        prepare,
        PrepareArguments,
        "Read a checkpoint and check that it fits, as the first phase of an update.",
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        "/commit_weight_update",
        commit,
        CommitArguments,
        "Write what was prepared.",
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        "/discard_weight_update",
        discard,
        DiscardArguments,
        "Forget what was prepared.",
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        "/join_fleet",
        join,
        JoinArguments,
        "Start to generate, if the weights are the fleet's.",
        access=Access.CONTROL,
        tag="weights",
    ),
)
