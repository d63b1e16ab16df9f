"""Several weight updates as one, and one that does everything around it: settle, update, flush, continue."""

from __future__ import annotations

from types import MappingProxyType

from pydantic import Field
from starlette.requests import Request
from starlette.responses import Response

from devicekit.scheduling.messages import Selector, UpdateWeightsFromDisk
from devicekit.scheduling.verbs.transaction import Settle, Transaction, TransactionReply
from devicekit.server.control import answer, answer_by_kind, details
from devicekit.server.endpoints import Arguments, Endpoint, Finite, Label
from devicekit.server.errors import bounded
from devicekit.server.keys import Access
from devicekit.server.serving import Serving
from devicekit.weights.operations import BeginWeightUpdate, EndWeightUpdate, SessionReply


class BeginArguments(Arguments):
    """Body of ``/begin_weight_update``."""

    selector: Selector = Selector.ALL


class TransactionArguments(Arguments):
    """Body of ``/transaction``."""

    needs = MappingProxyType({"weight_version": "model_path"})

    settle: Settle = Settle.RETRACT
    model_path: str | None = Field(default=None, description="new weights, on the server's disk")
    weight_version: Label | None = None
    flush_cache: bool = True
    torch_empty_cache: bool | None = None
    resume: bool = Field(default=True, description="false: stay paused")
    timeout: Finite | None = Field(default=None, ge=0, description="seconds, for draining and for the flush")


async def begin(serving: Serving, arguments: BeginArguments, request: Request) -> Response:
    """Open a session: nothing is generated until it ends. Updates need none."""
    operation = BeginWeightUpdate(serving.next_id(), arguments.selector)
    return _answer(await serving.perform(operation, SessionReply))


async def end(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """Close the session and sum it up."""
    return _answer(await serving.perform(EndWeightUpdate(serving.next_id()), SessionReply))


async def transaction(serving: Serving, arguments: TransactionArguments, request: Request) -> Response:
    """Settle requests, update, flush, empty and continue, with an answer for each step."""
    update = None
    if arguments.model_path is not None:
        roots = serving.weights_roots
        update = UpdateWeightsFromDisk(
            serving.next_id(),
            weight_version=arguments.weight_version,
            path=str(roots.confine(arguments.model_path)),
            within=roots.within,
        )
    operation = Transaction(
        serving.next_id(),
        arguments.settle,
        update,
        arguments.flush_cache,
        arguments.torch_empty_cache,
        arguments.resume,
        arguments.timeout,
    )
    reply = await serving.perform(operation, TransactionReply)
    steps = [
        {
            "name": step.name,
            "success": step.reply.success,
            "message": bounded(step.reply.message),
            **details(step.reply),
        }
        for step in reply.steps
    ]
    return answer_by_kind(
        reply, steps=steps, failed=reply.failed, outcome=reply.outcome.value, paused=reply.paused
    )


def _answer(reply: SessionReply) -> Response:
    return answer(
        reply,
        outcome=reply.outcome.value,
        updates=reply.updates,
        failures=reply.failures,
        tensors=reply.tensors,
        bytes=reply.bytes,
        weight_version=reply.weight_version,
    )


ENDPOINTS = (
    Endpoint(
        "/begin_weight_update",
        begin,
        BeginArguments,
        "Open a session of several updates; optional.",
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        "/end_weight_update",
        end,
        Arguments,
        "Close the session and sum it up.",
        access=Access.CONTROL,
        tag="weights",
    ),
    Endpoint(
        "/transaction",
        transaction,
        TransactionArguments,
        "Settle requests, update the weights, flush and continue, in one call.",
        access=Access.CONTROL,
        tag="weights",
    ),
)
