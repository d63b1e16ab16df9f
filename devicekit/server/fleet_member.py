"""What a fleet asks of one engine: an update in two phases, and to serve once it has the fleet's weights."""

from __future__ import annotations

import uuid
from types import MappingProxyType
from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from devicekit.scheduling.messages import Selector, UpdateReply
from devicekit.server.control import answer_by_kind
from devicekit.server.endpoints import Arguments, Endpoint, Finite, Label
from devicekit.server.errors import BadRequest
from devicekit.server.keys import Access
from devicekit.server.serving import Serving
from devicekit.server.weights import UpdateArguments, what_was_written
from devicekit.weights.operations import (
    ClaimForFleet,
    CommitWeights,
    DiscardWeights,
    EndClaim,
    HoldForFleet,
    HoldMode,
    JoinFleet,
    PreparedReply,
    PrepareWeights,
)

UpdateId = Annotated[Label, Field(min_length=1, description="the caller's name for the update")]
_LEASE = Field(
    "", description="that the claim was answered with; needed while a fleet has claimed the engine"
)


class ClaimArguments(Arguments):
    """Body of ``/claim_for_fleet``."""

    fleet: Annotated[Label, Field(min_length=1, description="the identity of the fleet")]
    steered_by: Label = Field("", description="who that is, for people")
    take_over: bool = Field(False, description="also from another fleet")
    holder: Label = Field("", description="the process that claims; another after every start")
    again: bool = Field(
        False, description="refused where another holder has claimed the engine since this one did"
    )


class LeaseArguments(Arguments):
    """Body of ``/end_fleet_claim``."""

    lease: Annotated[Label, Field(min_length=1)]


class HoldArguments(Arguments):
    """Body of ``/hold_for_fleet``."""

    mode: HoldMode = HoldMode.RETRACT
    timeout: Finite | None = Field(
        default=None,
        ge=0,
        description="seconds for what runs to end, with finish; default: as long as it takes",
    )
    lease: Label = _LEASE


class PrepareArguments(Arguments):
    """Body of ``/prepare_weight_update``."""

    needs = MappingProxyType(dict.fromkeys(("weight_version", "checksum", "patience"), "peer"))

    update_id: UpdateId
    model_path: str | None = None
    peer: Label | None = Field(
        None,
        description="in place of model_path: URL of an engine that has the weights and opens to this one's key",
    )
    weight_version: Label = Field("", description="that the peer must have")
    checksum: Label = Field(
        "", description="per_engine_checksum of /weights_checker, that the peer's must have"
    )
    patience: Finite = Field(
        60.0, gt=0, le=3600, description="seconds in which the peer must send a mebibyte, or all that is left"
    )
    selector: Selector = Selector.ALL
    lease: Label = _LEASE


class CommitArguments(UpdateArguments):
    """Body of ``/commit_weight_update``."""

    update_id: UpdateId
    lease: Label = _LEASE


class DiscardArguments(Arguments):
    """Body of ``/discard_weight_update``."""

    update_id: UpdateId
    lease: Label = _LEASE


class JoinArguments(Arguments):
    """Body of ``/join_fleet``."""

    weight_version: Annotated[Label, Field(min_length=1)]
    checksum: Label | None = Field(
        None, description="per_engine_checksum of /weights_checker; default: not compared"
    )
    lease: Label = _LEASE


async def claim(serving: Serving, arguments: ClaimArguments, request: Request) -> Response:
    """Let one fleet alone steer this engine; its lease, and what the engine is."""
    operation = ClaimForFleet(
        serving.next_id(),
        arguments.fleet,
        arguments.steered_by,
        uuid.uuid4().hex,
        arguments.take_over,
        arguments.holder,
        arguments.again,
    )
    return _answer(await serving.perform(operation, PreparedReply), instance=serving.instance)


async def end_claim(serving: Serving, arguments: LeaseArguments, request: Request) -> Response:
    """Let others steer."""
    return _answer(await serving.perform(EndClaim(serving.next_id(), arguments.lease), PreparedReply))


async def hold(serving: Serving, arguments: HoldArguments, request: Request) -> Response:
    """Generate nothing until this engine joins its fleet."""
    if arguments.timeout is not None and arguments.mode is not HoldMode.FINISH:
        raise BadRequest("timeout: it means nothing with any mode but finish.")
    operation = HoldForFleet(serving.next_id(), arguments.mode, arguments.timeout, arguments.lease)
    return _answer(await serving.perform(operation, PreparedReply))


async def prepare(serving: Serving, arguments: PrepareArguments, request: Request) -> Response:
    """Read a checkpoint of the server's disk, or a peer's weights, and check that they fit; nothing is written."""
    if (arguments.model_path is None) is (arguments.peer is None):
        raise BadRequest("Send model_path or peer: one of the two.")
    path = "" if arguments.model_path is None else str(serving.weights_roots.confine(arguments.model_path))
    settings = serving.settings
    operation = PrepareWeights(
        serving.next_id(),
        arguments.update_id,
        path,
        arguments.selector,
        arguments.lease,
        peer=arguments.peer or "",
        peer_key=None if arguments.peer is None else settings.admin_api_key or settings.api_key,
        weight_version=arguments.weight_version,
        checksum=arguments.checksum,
        patience=arguments.patience,
        within=serving.weights_roots.within,
    )
    return _answer(await serving.perform(operation, PreparedReply))


async def commit(serving: Serving, arguments: CommitArguments, request: Request) -> Response:
    """Write what was prepared."""
    operation = CommitWeights(
        serving.next_id(), **arguments.common(), update_id=arguments.update_id, lease=arguments.lease
    )
    reply = await serving.perform(operation, UpdateReply)
    return answer_by_kind(reply, **what_was_written(reply))


async def discard(serving: Serving, arguments: DiscardArguments, request: Request) -> Response:
    """Forget what was prepared."""
    operation = DiscardWeights(serving.next_id(), arguments.update_id, arguments.lease)
    return _answer(await serving.perform(operation, PreparedReply))


async def join(serving: Serving, arguments: JoinArguments, request: Request) -> Response:
    """Generate, if the weights are the fleet's."""
    operation = JoinFleet(serving.next_id(), arguments.weight_version, arguments.checksum, arguments.lease)
    return _answer(await serving.perform(operation, PreparedReply))


def _answer(reply: PreparedReply, **more: object) -> Response:
    return answer_by_kind(
        reply,
        update_id=reply.update_id,
        tensors=reply.tensors,
        weight_version=reply.weight_version,
        lease=reply.lease,
        awaits_fleet=reply.waiting,
        **more,
    )


ENDPOINTS = (
    Endpoint(
        "/claim_for_fleet",
        claim,
        ClaimArguments,
        "Let one fleet alone steer this engine.",
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        "/end_fleet_claim",
        end_claim,
        LeaseArguments,
        "Let others steer.",
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        "/hold_for_fleet",
        hold,
        HoldArguments,
        "Generate nothing until this engine joins its fleet.",
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        "/prepare_weight_update",
        prepare,
        PrepareArguments,
        "Read a checkpoint, or a peer's weights, and check that they fit, as the first phase of an update.",
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
