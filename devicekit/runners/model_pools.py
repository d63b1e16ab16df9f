"""The device memory that a model fills while it runs: keys and values, states, and a draft model's beside them."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from devicekit.memory.kv import KVPool
from devicekit.memory.sizing import KVPlan
from devicekit.memory.state import StatePool
from devicekit.runners.transformers_runner import TransformersRunner

if TYPE_CHECKING:
    from devicekit.device import Device


@dataclass(frozen=True, slots=True)
class ModelPools:
    """Pools that are allocated, released and resumed together."""

    kv: KVPool
    draft: KVPool | None = None  # the draft model's, over the same pages
    states: StatePool | None = None

    @property
    def parts(self) -> tuple[KVPool | StatePool, ...]:
        """Every pool there is."""
        return tuple(pool for pool in (self.kv, self.draft, self.states) if pool is not None)


def build_pools(
    device: Device,
    plan: KVPlan,
    runner: TransformersRunner,
    draft: TransformersRunner | None = None,
    *,
    snapshots: int = 0,
    checked: bool = False,
) -> ModelPools:
    """Allocate what a plan says and bind the runners to it.

    Args:
        snapshots: states of recurrent layers that are kept for cached prefixes.
        checked: find state slots that are given back twice.
    """
    states = None
    if runner.states is not None:
        states = StatePool(device, runner.states, plan.max_running, snapshots=snapshots, checked=checked)
    kv = KVPool(device, runner.layout, plan.num_pages, plan.page_size, window_pages=plan.window_pages)
    runner.bind(kv, states)
    beside = None
    if draft is not None:
        beside = kv.companion(draft.layout)
        draft.bind(beside)
    return ModelPools(kv, beside, states)
