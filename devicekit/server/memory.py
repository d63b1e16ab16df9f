"""Memory occupation: giving the memory of weights and caches away for a while, and taking it back."""

from __future__ import annotations

import dataclasses

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from devicekit.server.control import answer_by_kind
from devicekit.server.endpoints import Arguments, Endpoint
from devicekit.server.keys import Access
from devicekit.server.serving import Serving
from devicekit.weights.operations import MemoryReply, ReleaseMemory, ResumeMemory


class ResumeArguments(Arguments):
    """Body of ``/resume_memory_occupation``."""

    tags: list[str] | str | None = Field(
        default=None, description="weights, kv_cache, graphs, host_kv; default: all there are"
    )

    def names(self) -> tuple[str, ...]:
        """The engine's names of the tags. Clients call captured graphs by their vendor's name of them."""
        given = [self.tags] if isinstance(self.tags, str) else self.tags or []
        return tuple("graphs" if tag.endswith("_graph") else tag for tag in given)


class ReleaseArguments(ResumeArguments):
    """Body of ``/release_memory_occupation``."""

    backup_weights: bool = Field(
        default=False,
        description="keep a copy in host memory; without one, weights must be pushed afterwards",
    )


async def release(serving: Serving, arguments: ReleaseArguments, request: Request) -> Response:
    """Give memory back to the driver."""
    operation = ReleaseMemory(serving.next_id(), arguments.names(), arguments.backup_weights)
    return _answer(await serving.perform(operation, MemoryReply))


async def resume(serving: Serving, arguments: ResumeArguments, request: Request) -> Response:
    """Take memory again."""
    operation = ResumeMemory(serving.next_id(), arguments.names())
    return _answer(await serving.perform(operation, MemoryReply))


def _answer(reply: MemoryReply) -> Response:
    regions = [dataclasses.asdict(region) for region in reply.regions]
    return answer_by_kind(reply, regions=regions, untrusted=reply.untrusted)


ENDPOINTS = (
    Endpoint(
        "/release_memory_occupation",
        release,
        ReleaseArguments,
        "Give the memory of weights and caches back to the driver; refused unless idle.",
        methods=("GET", "POST"),
        access=Access.CONTROL,
        tag="memory",
    ),
    Endpoint(
        "/resume_memory_occupation",
        resume,
        ResumeArguments,
        "Take that memory again.",
        methods=("GET", "POST"),
        access=Access.CONTROL,
        tag="memory",
    ),
)
