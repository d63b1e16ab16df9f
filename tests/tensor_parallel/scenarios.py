"""What each rank does in a test, in a process of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import cast

from devicekit.engine import Engine, EngineConfig
from devicekit.scheduling.ranks.group import RankGroup
from devicekit.scheduling.ranks.scheduler import LockstepScheduler

PROMPTS = [list(range(3, 30)), [7, 7, 7], list(range(60, 20, -1))]
KV_TOKENS = 512


@dataclass
class Seen:
    """What a rank has to tell."""

    weight_bytes: int
    pool_bytes: int
    pages: int
    share: str
    said: dict[str, object] = field(default_factory=dict)  # by rank 0


def generate(engine: Engine, count: int = 12) -> list[list[int]]:
    """The same greedy tokens wherever the weights are the same."""
    return [list(one.tokens) for one in engine.generate(PROMPTS, max_new_tokens=count, temperature=0)]


def together(path: str, script: Callable[[Engine], dict[str, object]], **config: object) -> Seen:
    """Open an engine of all ranks, and have rank 0 use it."""
    ranks = RankGroup(timeout=20, heartbeat=0.1)
    chosen = EngineConfig(kv_tokens=KV_TOKENS, tensor_parallel=ranks.size, **config)  # type: ignore[arg-type]
    engine = Engine.open(path, "cpu", ranks=ranks, config=chosen)
    scheduler = cast("LockstepScheduler", engine.scheduler)
    seen = Seen(engine.weight_bytes, engine.plan.pool_bytes, engine.plan.num_pages, str(engine.runner.share))
    if ranks.rank:
        scheduler.follow()
    else:
        seen.said = script(engine)
        scheduler.close()
    return seen


def tokens(path: str, config: dict[str, object]) -> Seen:
    return together(path, lambda engine: {"tokens": generate(engine)}, **config)


def refused(path: str, config: dict[str, object]) -> str:
    """What every rank is told of a model that they cannot hold together."""
    try:
        together(path, lambda engine: {}, **config)
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
