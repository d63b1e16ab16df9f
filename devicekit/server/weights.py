"""Weight updates, and which version of the weights is served."""

from __future__ import annotations

import asyncio
import base64
from typing import TypedDict

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from devicekit.contract.text import shown
from devicekit.scheduling.messages import Selector, UpdateReply, UpdateWeightsFromDisk
from devicekit.server.control import answer
from devicekit.server.endpoints import Arguments, Endpoint, Label
from devicekit.server.errors import BadRequest
from devicekit.server.keys import Access
from devicekit.server.serving import Serving
from devicekit.weights.bucket import FlatBucket
from devicekit.weights.operations import UpdateWeightsFromTensor
from devicekit.weights.pickled import Payload, read_pickled

_PICKLE = b"\x80"  # first byte of every pickle of protocol 2 and above
_HEADER_AT = 8  # safetensors: the header's size in eight bytes, then the header, which is a JSON object


class CommonFields(TypedDict):
    """Keyword arguments of `UpdateWeights`."""

    flush_cache: bool
    empty_cache: bool | None
    abort_all_requests: bool
    weight_version: str | None
    selector: Selector


class UpdateArguments(Arguments):
    """What every weight update reads."""

    flush_cache: bool = True
    torch_empty_cache: bool | None = Field(
        None, description="hand unused memory back to the driver; default: no"
    )
    abort_all_requests: bool = False
    weight_version: Label | None = None
    selector: Selector = Selector.ALL

    def common(self) -> CommonFields:
        """The fields that every update operation has."""
        return {
            "flush_cache": self.flush_cache,
            "empty_cache": self.torch_empty_cache,
            "abort_all_requests": self.abort_all_requests,
            "weight_version": self.weight_version,
            "selector": self.selector,
        }


class UpdateFromDiskArguments(UpdateArguments):
    """Body of ``/update_weights_from_disk``."""

    model_path: str
    load_format: str | None = Field(default=None, description="auto or safetensors")


class UpdateFromTensorArguments(UpdateArguments):
    """Body of ``/update_weights_from_tensor``."""

    serialized_named_tensors: list[str] = Field(
        description="one, or the same for each rank, in base64: the bytes of safetensors; or, if allowed, "
        "a pickle of shared tensors"
    )
    load_format: str | None = Field(
        default=None,
        description="direct or safetensors, which are the same; flattened_bucket for such a pickle",
    )


async def update_from_disk(
    serving: Serving, arguments: UpdateFromDiskArguments, request: Request
) -> Response:
    """Replace the weights by those of a directory on the server's disk."""
    if arguments.load_format not in (None, "auto", "safetensors"):
        raise BadRequest(f"Weights are read from safetensors only, not as {shown(arguments.load_format)}.")
    roots = serving.weights_roots
    path = str(roots.confine(arguments.model_path))
    operation = UpdateWeightsFromDisk(serving.next_id(), **arguments.common(), path=path, within=roots.within)
    # Nothing is paused to wait for it, hence the 0: the field is there for clients that read it.
    return updated(await serving.perform(operation, UpdateReply), num_paused_requests=0)


async def update_from_tensor(
    serving: Serving, arguments: UpdateFromTensorArguments, request: Request
) -> Response:
    """Replace weights by those in the request."""
    payloads, ranks = arguments.serialized_named_tensors, serving.engine.ranks
    if len(payloads) not in (1, ranks) or len(set(payloads)) != 1:
        raise BadRequest(
            "This engine has one rank: send one payload in serialized_named_tensors."
            if ranks == 1
            else f"Each of the {ranks} ranks of this engine takes whole weights: send one payload in "
            "serialized_named_tensors, or the same one for each."
        )
    content = await serving.compute(len(payloads[0]), lambda: _decode(payloads[0]))
    if content[:1] == _PICKLE and serving.settings.allow_pickled_weights:
        # Away from the event loop: it talks to the sender.
        payload = await asyncio.get_running_loop().run_in_executor(None, read_pickled, content)
        operation = _operation(serving, arguments, payload)
    else:
        _require_safetensors(content, arguments.load_format)
        operation = UpdateWeightsFromTensor(serving.next_id(), **arguments.common(), safetensors=content)
    return updated(await serving.perform(operation, UpdateReply))


def _operation(
    serving: Serving, arguments: UpdateFromTensorArguments, payload: Payload
) -> UpdateWeightsFromTensor:
    flat = isinstance(payload, FlatBucket)
    if arguments.load_format not in (("flattened_bucket",) if flat else (None, "direct")):
        kind = "a flattened bucket" if flat else "named tensors"
        raise BadRequest(f"This payload is {kind}, and load_format says {shown(arguments.load_format)}.")
    common = arguments.common()
    if isinstance(payload, FlatBucket):
        return UpdateWeightsFromTensor(serving.next_id(), **common, bucket=payload)
    return UpdateWeightsFromTensor(serving.next_id(), **common, tensors=payload)


def _require_safetensors(content: bytes, load_format: str | None) -> None:
    if load_format not in (None, "direct", "safetensors"):
        raise BadRequest(f"Weights in a request are safetensors only, not {shown(load_format)}.")
    if content[_HEADER_AT : _HEADER_AT + 1] != b"{":
        raise BadRequest(
            "serialized_named_tensors is not safetensors. Pickled tensors are refused: reading them can run code. "
            "devicekit serve --allow-pickled-weights reads those of trainers on this machine, and runs none."
        )


def _decode(payload: str) -> bytes:
    try:
        return base64.b64decode(payload, validate=True)
    except ValueError as error:
        raise BadRequest(f"serialized_named_tensors is not base64: {error}") from error


def updated(reply: UpdateReply, **more: object) -> JSONResponse:
    """The answer to any weight update."""
    return answer(reply, **what_was_written(reply), **more)


def what_was_written(reply: UpdateReply) -> dict[str, object]:
    """Of a weight update, for its answer."""
    return {
        "outcome": reply.outcome.value,
        "weight_version": reply.weight_version,
        "tensors": reply.tensors,
        "bytes": reply.bytes,
        "staging": None if reply.staging is None else reply.staging.value,
        "rollback": None if reply.rollback is None else reply.rollback.value,
        "write_seconds": reply.write_seconds,
    }


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
        "/update_weights_from_tensor",
        update_from_tensor,
        UpdateFromTensorArguments,
        "Replace weights by those in the request, in safetensors.",
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        "/weight_version",
        weight_version,
        Arguments,
        "The version of the weights that are served.",
        methods=("GET",),
        access=Access.USER,
        in_query=True,
        aliases=("/get_weight_version",),
        tag="weights",
    ),
)
