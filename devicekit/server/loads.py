"""``/v1/loads``: how much work there is, live, also while generation is paused."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from datetime import datetime, timezone
from types import MappingProxyType
from typing import Literal

from pydantic import Field
from starlette.requests import Request
from starlette.responses import JSONResponse, PlainTextResponse, Response

from devicekit import __version__
from devicekit.contract.text import shown
from devicekit.server.endpoints import Arguments, Endpoint
from devicekit.server.errors import BadRequest
from devicekit.server.keys import Access
from devicekit.server.serving import Serving


class LoadsArguments(Arguments):
    """Query of ``/v1/loads``."""

    dp_rank: int | None = None
    include: str = Field(
        default="all",
        description="sections, separated by commas: core, memory, queues, all; and pools, which takes a count",
    )
    format: Literal["json", "prometheus"] = "json"


async def loads(serving: Serving, arguments: LoadsArguments, request: Request) -> Response:
    """How much work there is."""
    sections = _sections(arguments.include)
    load = _load(serving, sections) if arguments.dp_rank in (None, 0) else None
    if load is not None and _POOLS in sections:
        load[_POOLS] = await _pools(serving)
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
    now, engine = serving.loop.snapshot, serving.engine
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
        "cache_hit_rate": now.cache_hit_rate,
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


async def _pools(serving: Serving) -> dict[str, int]:
    """Every pool's terms; nothing while the engine is in a step that does not end."""
    pools = await serving.inventory.pools() or {}
    return {
        f"{name}_{term}": value
        for name, pool in pools.items()
        for term, value in {**dataclasses.asdict(pool), "missing": pool.missing}.items()
    }


_POOLS = "pools"
_SECTIONS: Mapping[str, Callable[[Serving], dict[str, object]]] = MappingProxyType(
    {"memory": _memory, "queues": _queues}
)
# Sections of what this engine has not got. Asking for them is no mistake; there is nothing to tell.
_ABSENT = frozenset({"spec", "lora", "disagg"})


def _sections(include: str) -> list[str]:
    names = [name.strip() for name in include.split(",") if name.strip()]
    unknown = [
        name for name in names if name not in _SECTIONS and name not in _ABSENT | {"core", _POOLS, "all"}
    ]
    if unknown:
        there = ", ".join(("core", *_SECTIONS, _POOLS, "all"))
        raise BadRequest(f"include: there is no section {shown(unknown[0])}; there are {there}.")
    chosen = [*_SECTIONS] if "all" in names else [name for name in names if name in _SECTIONS]
    return [*chosen, _POOLS] if _POOLS in names else chosen


def _load(serving: Serving, sections: list[str]) -> dict[str, object]:
    load: dict[str, object] = {"timestamp": _now(), "dp_rank": 0, **_core(serving)}
    return load | {name: _SECTIONS[name](serving) for name in sections if name in _SECTIONS}


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
        "/v1/loads",
        loads,
        LoadsArguments,
        "How much work there is, live.",
        methods=("GET",),
        access=Access.USER,
        in_query=True,
    ),
)
