"""``/v1/loads``: how much work there is, live, also while generation is paused."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from devicekit import __version__
from devicekit.server.endpoints import Arguments, Endpoint
from devicekit.server.errors import BadRequest
from devicekit.server.serving import Serving


class LoadsArguments(Arguments):
    """Query of ``/v1/loads``."""

    dp_rank: int | None = None
    include: str = Field(
        default="all", description="sections, separated by commas: core, memory, queues, all"
    )
    format: Literal["json", "prometheus"] = "json"


async def loads(serving: Serving, arguments: LoadsArguments, request: Request) -> Response:
    """How much work there is."""
    load = _load(serving, _sections(arguments.include)) if arguments.dp_rank in (None, 0) else None
    if arguments.format == "prometheus":
        return PlainTextResponse("".join(_gauges(load or {})))
    properties = serving.engine.device.properties()
    return JSONResponse(
        {
            "timestamp": _now(),
            "version": __version__,
            "accelerator": properties.name,
            "num_accelerators": 1,
            "loads": [] if load is None else [load],
        }
    )


def _core(serving: Serving) -> dict[str, object]:
    now, engine, metrics = serving.loop.snapshot, serving.engine, serving.metrics
    size = engine.config.page_size
    used, total = now.pages_used * size, now.pages_total * size
    return {
        "num_running_reqs": now.running + now.prefilling,
        "num_waiting_reqs": now.waiting,
        "num_total_reqs": now.running + now.prefilling + now.waiting,
        "num_used_tokens": used,
        "num_cached_tokens": now.pages_cached * size,
        "max_total_num_tokens": total,
        "max_running_requests": engine.config.max_running,
        "token_usage": used / total if total else None,
        "cache_hit_rate": metrics.cached_tokens / metrics.prompt_tokens if metrics.prompt_tokens else None,
        "paused": now.paused,
    }


def _memory(serving: Serving) -> dict[str, object]:
    engine = serving.engine
    return {
        "weight_gb": round(engine.weight_bytes / 2**30, 3),
        "kv_cache_gb": round(engine.plan.pool_bytes / 2**30, 3),
        "token_capacity": engine.plan.num_tokens,
    }


def _queues(serving: Serving) -> dict[str, object]:
    now = serving.loop.snapshot
    return {"waiting": now.waiting, "prefilling": now.prefilling, "paused": now.waiting if now.paused else 0}


_SECTIONS: Mapping[str, Callable[[Serving], dict[str, object]]] = MappingProxyType(
    {"memory": _memory, "queues": _queues}
)
# Sections of what this engine has not got. Asking for them is no mistake; there is nothing to tell.
_ABSENT = frozenset({"spec", "lora", "disagg"})


def _sections(include: str) -> list[str]:
    names = [name.strip() for name in include.split(",") if name.strip()]
    unknown = [name for name in names if name not in _SECTIONS and name not in _ABSENT | {"core", "all"}]
    if unknown:
        raise BadRequest(f"There is no section {unknown[0]!r}; there are core, {', '.join(_SECTIONS)}, all.")
    return [*_SECTIONS] if "all" in names else [name for name in names if name in _SECTIONS]


def _load(serving: Serving, sections: list[str]) -> dict[str, object]:
    load: dict[str, object] = {"timestamp": _now(), "dp_rank": 0, **_core(serving)}
    return load | {name: _SECTIONS[name](serving) for name in sections}


def _gauges(load: Mapping[str, object]) -> Iterator[str]:
    for section, value in load.items():
        values = value if isinstance(value, dict) else {section: value}
        prefix = section if isinstance(value, dict) else "core"
        for key, number in values.items():
            if isinstance(number, (int, float)) and key != "dp_rank":
                yield f'devicekit_{prefix}_{key}{{dp_rank="0"}} {float(number):g}\n'


def _now() -> str:
    return datetime.now(timezone.utc).isoformat()


ENDPOINTS = (
    Endpoint(
        "/v1/loads", loads, LoadsArguments, "How much work there is, live.", methods=("GET",), in_query=True
    ),
)
