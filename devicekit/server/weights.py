"""Weight updates, and which version of the weights is served."""

from __future__ import annotations

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from devicekit.scheduling.messages import UpdateReply, UpdateWeightsFromDisk
from devicekit.server.control import answer
from devicekit.server.endpoints import Arguments, Endpoint
from devicekit.server.errors import BadRequest
from devicekit.server.keys import Access
from devicekit.server.serving import Serving


class UpdateArguments(Arguments):
    """What every weight update reads."""

    flush_cache: bool = True
    torch_empty_cache: bool | None = Field(
        None, description="hand unused memory back to the driver; default: no"
    )
    abort_all_requests: bool = False
    weight_version: str | None = None


class UpdateFromDiskArguments(UpdateArguments):
    """Body of ``/update_weights_from_disk``."""

    model_path: str
    load_format: str | None = Field(default=None, description="auto or safetensors")


async def update_from_disk(
    serving: Serving, arguments: UpdateFromDiskArguments, request: Request
) -> Response:
    """Replace the weights by those of a directory on the server's disk."""
    if arguments.load_format not in (None, "auto", "safetensors"):
        raise BadRequest(f"Weights are read from safetensors only, not as {arguments.load_format!r}.")
    path = serving.weights_roots.confine(arguments.model_path)
    operation = UpdateWeightsFromDisk(
        serving.next_id(),
        flush_cache=arguments.flush_cache,
        empty_cache=arguments.torch_empty_cache,
        abort_all_requests=arguments.abort_all_requests,
        weight_version=arguments.weight_version,
        path=str(path),
    )
    # Nothing is paused to wait for it, hence the 0: the field is there for clients that read it.
    return updated(await serving.perform(operation, UpdateReply), num_paused_requests=0)


def updated(reply: UpdateReply, **more: object) -> JSONResponse:
    """The answer to any weight update."""
    return answer(
        reply,
        outcome=reply.outcome.value,
        weight_version=reply.weight_version,
        tensors=reply.tensors,
        bytes=reply.bytes,
        **more,
    )


async def weight_version(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """The version of the weights that the next token comes from."""
    return JSONResponse({"weight_version": serving.loop.snapshot.weight_version})


ENDPOINTS = (
    Endpoint(
        "/update_weights_from_disk",
        update_from_disk,
        UpdateFromDiskArguments,
        "Replace the weights by those of a directory on the server's disk.",
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        "/weight_version",
        weight_version,
        Arguments,
        "The version of the weights that are served.",
        methods=("GET",),
        in_query=True,
        aliases=("/get_weight_version",),
        tag="weights",
    ),
)
