"""What is served, and how the server is set up."""

from __future__ import annotations

import dataclasses
import time

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from devicekit import __version__
from devicekit.contract.text import shown
from devicekit.server.endpoints import Arguments, Endpoint, Handler
from devicekit.server.errors import BadRequest, NotFound
from devicekit.server.health import status_of
from devicekit.server.keys import Access
from devicekit.server.serving import Serving


async def model_info(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """The model."""
    engine = serving.engine
    directory = engine.runner.directory
    return JSONResponse(
        {
            "model_path": str(directory.path),
            "served_model_name": serving.model_name,
            "tokenizer_path": str(directory.path) if engine.tokenizer is not None else None,
            "is_generation": True,
            "preferred_sampling_params": None,
            "weight_version": serving.loop.snapshot.weight_version,
            "load_format": "safetensors",
            **_model_facts(serving),
        }
    )


def _model_facts(serving: Serving) -> dict[str, object]:
    config, limits = serving.engine.runner.directory.config, serving.engine.runner.limits
    return {
        "model_type": config.model_type,
        "architectures": config.architectures,
        "max_context_length": limits.max_positions,
        "vocab_size": limits.vocab_size,
    }


async def server_info(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """The server: settings without keys, sizes, and the state of the engine."""
    engine, settings = serving.engine, serving.settings
    status, message = status_of(serving)
    return JSONResponse(
        {
            "version": __version__,
            "status": status,
            "status_message": message,
            "model_path": str(engine.runner.directory.path),
            "served_model_name": serving.model_name,
            "host": settings.host,
            "port": settings.port,
            "max_concurrent_requests": settings.max_concurrent_requests,
            "max_body_bytes": settings.max_body_bytes,
            "allowed_weights_roots": [str(root) for root in serving.weights_roots.roots],
            "device": str(engine.device.torch_device),
            "backend": engine.device.backend.label,
            "ranks": engine.ranks,
            "instance": serving.instance,
            "weight_version": serving.loop.snapshot.weight_version,
            "prepared_update": engine.weights.prepared.update_id,
            "awaits_fleet": engine.weights.membership.waiting,
            "steered_by": engine.weights.membership.steered_by,
            **_model_facts(serving),
            "started": serving.started,
            "uptime": time.time() - serving.started,
            **dataclasses.asdict(engine.config),
            "kv_plan": dataclasses.asdict(engine.plan),
            "captured": dataclasses.asdict(engine.graphs.figures),
            "internal_states": [
                {
                    "memory_usage": {
                        "weight": _gib(engine.weight_bytes),
                        "kvcache": _gib(engine.plan.pool_bytes),
                        "startup_available": _gib(engine.plan.available_bytes),
                        "token_capacity": engine.plan.num_tokens,
                    },
                    "effective_max_running_requests_per_dp": engine.config.max_running,
                }
            ],
        }
    )


def _gib(size: int | None) -> float | None:
    return None if size is None else round(size / 2**30, 3)


def _model(serving: Serving) -> dict[str, object]:
    return {
        "id": serving.model_name,
        "object": "model",
        "created": int(serving.started),
        "owned_by": "devicekit",
        "root": str(serving.engine.runner.directory.path),
        "max_model_len": serving.longest,
    }


async def model(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """One model, in OpenAI's format."""
    name = request.path_params["name"]
    if name.startswith("{") and name.endswith("}"):  # what a description of the API has in its place
        raise BadRequest(f"Put the name of a model in the place of {name}.")
    if name != serving.model_name:
        raise NotFound(f"There is no model {shown(name)} here, only {shown(serving.model_name)}.")
    return JSONResponse(_model(serving))


async def models(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """The one model, in OpenAI's format."""
    return JSONResponse({"object": "list", "data": [_model(serving)]})


async def metrics(serving: Serving, arguments: Arguments, request: Request) -> Response:
    """Metrics, for Prometheus."""
    return Response(
        serving.metrics.exposition(await serving.inventory.pools()), media_type="text/plain; version=0.0.4"
    )


def _endpoint(
    path: str,
    handler: Handler[Arguments],
    summary: str,
    *,
    aliases: tuple[str, ...] = (),
    access: Access = Access.USER,
) -> Endpoint[Arguments]:
    return Endpoint(
        path, handler, Arguments, summary, methods=("GET",), access=access, in_query=True, aliases=aliases
    )


ENDPOINTS = (
    _endpoint("/model_info", model_info, "The model that is served.", aliases=("/get_model_info",)),
    _endpoint("/server_info", server_info, "Settings, sizes and state.", aliases=("/get_server_info",)),
    _endpoint("/v1/models", models, "The model that is served, in OpenAI's format."),
    _endpoint("/v1/models/{name:path}", model, "The model of this name, in OpenAI's format."),
    _endpoint("/metrics", metrics, "Metrics, for Prometheus.", access=Access.OPEN),
)
