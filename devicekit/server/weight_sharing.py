"""Weight updates out of memory that a trainer on this machine shares: by handles, or streamed through a buffer."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from devicekit.scheduling.messages import UpdateReply
from devicekit.server.endpoints import Endpoint, Finite
from devicekit.server.errors import BadRequest
from devicekit.server.keys import Access
from devicekit.server.serving import Serving
from devicekit.server.weights import UpdateArguments, updated
from devicekit.weights.operations import UpdateWeightsFromIPC, UpdateWeightsFromStream


class UpdateFromIPCArguments(UpdateArguments):
    """Body of ``/update_weights_from_ipc``: one of ``handles`` and ``zmq_handles``."""

    handles: Annotated[dict[str, dict[str, object]], Field(min_length=1)] | None = Field(
        default=None, description="by name of weight, what handle_to_json makes of Device.export_ipc"
    )
    zmq_handles: Annotated[dict[str, str], Field(min_length=1)] | None = Field(
        default=None, description="by uuid of device, the socket over which checkpoint-engine streams buckets"
    )
    timeout: Finite = Field(
        default=300.0, gt=0, le=86400, description="seconds to wait for each streamed bucket"
    )


async def update_from_ipc(serving: Serving, arguments: UpdateFromIPCArguments, request: Request) -> Response:
    """Replace weights by those in another process's memory."""
    if (arguments.handles is None) == (arguments.zmq_handles is None):
        raise BadRequest("Send either handles or zmq_handles.")
    if arguments.handles is not None:
        by_handle = UpdateWeightsFromIPC(serving.next_id(), **arguments.common(), handles=arguments.handles)
        return updated(await serving.perform(by_handle, UpdateReply))
    if not serving.settings.allow_pickled_weights:
        raise BadRequest(
            "What is streamed over zmq_handles are pickles, which are refused. devicekit serve "
            "--allow-pickled-weights reads those of trainers on this machine, and runs nothing in them."
        )
    streamed = UpdateWeightsFromStream(
        serving.next_id(),
        **arguments.common(),
        sockets=arguments.zmq_handles or {},
        timeout=arguments.timeout,
    )
    return updated(await serving.perform(streamed, UpdateReply))


ENDPOINTS = (
    Endpoint(
        "/update_weights_from_ipc",
        update_from_ipc,
        UpdateFromIPCArguments,
        "Replace weights by those in another process's memory.",
        access=Access.CONTROL,
        tag="weights",
    ),
)
