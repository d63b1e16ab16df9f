"""Weight updates that a trainer broadcasts over a process group: joining, receiving, leaving."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from devicekit.contract.text import shown
from devicekit.scheduling.messages import UpdateReply
from devicekit.server.control import answer
from devicekit.server.endpoints import Arguments, Endpoint, Finite, Label
from devicekit.server.errors import BadRequest
from devicekit.server.keys import Access
from devicekit.server.serving import Serving
from devicekit.server.weights import UpdateArguments, updated
from devicekit.weights.operations import (
    DEFAULT_GROUP,
    DestroyUpdateGroup,
    GroupReply,
    InitUpdateGroup,
    UpdateWeightsFromDistributed,
)

_Size = Annotated[int, Field(ge=0, lt=2**62)]


class GroupArguments(Arguments):
    """Body of ``/destroy_weights_update_group``."""

    group_name: Label = DEFAULT_GROUP


class InitGroupArguments(GroupArguments):
    """Body of ``/init_weights_update_group``."""

    master_address: str
    master_port: int
    rank_offset: int
    world_size: int
    backend: str | None = Field(default=None, description="collective backend; default: the device's own")
    timeout: Finite = Field(default=300.0, gt=0, le=86400, description="seconds for everybody to join")


class UpdateFromDistributedArguments(UpdateArguments):
    """Body of ``/update_weights_from_distributed``."""

    names: list[str]
    dtypes: list[str]
    shapes: list[list[_Size]]
    group_name: Label = DEFAULT_GROUP
    load_format: str | None = Field(default=None, description="flattened_bucket: all in one tensor of bytes")


async def init_group(serving: Serving, arguments: InitGroupArguments, request: Request) -> Response:
    """Join a trainer's process group; answered when everybody has."""
    operation = InitUpdateGroup(
        serving.next_id(),
        master_address=arguments.master_address,
        master_port=arguments.master_port,
        world_size=arguments.world_size,
        rank_offset=arguments.rank_offset,
        group_name=arguments.group_name,
        backend=arguments.backend,
        timeout=arguments.timeout,
    )
    return _answer(await serving.perform(operation, GroupReply))


async def destroy_group(serving: Serving, arguments: GroupArguments, request: Request) -> Response:
    """Leave a process group."""
    operation = DestroyUpdateGroup(serving.next_id(), arguments.group_name)
    return _answer(await serving.perform(operation, GroupReply))


async def update_from_distributed(
    serving: Serving, arguments: UpdateFromDistributedArguments, request: Request
) -> Response:
    """Receive what the trainer broadcasts, in this order."""
    if arguments.load_format not in (None, "flattened_bucket"):
        raise BadRequest(f"There is no load_format {shown(arguments.load_format)} for broadcasts.")
    operation = UpdateWeightsFromDistributed(
        serving.next_id(),
        **arguments.common(),
        names=tuple(arguments.names),
        dtypes=tuple(arguments.dtypes),
        shapes=tuple(map(tuple, arguments.shapes)),
        group_name=arguments.group_name,
        flattened=arguments.load_format is not None,
    )
    return updated(await serving.perform(operation, UpdateReply))


def _answer(reply: GroupReply) -> Response:
    return answer(reply, group_name=reply.group_name, rank=reply.rank, backend=reply.backend)


ENDPOINTS = (
    Endpoint(
        "/init_weights_update_group",
        init_group,
        InitGroupArguments,
        "Join a trainer's process group.",
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        "/destroy_weights_update_group",
        destroy_group,
        GroupArguments,
        "Leave a trainer's process group.",
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        "/update_weights_from_distributed",
        update_from_distributed,
        UpdateFromDistributedArguments,
        "Replace weights by what a trainer broadcasts.",
        access=Access.CONTROL,
        tag="weights",
    ),
)
