"""Sizes of an engine, and how its KV pool follows from them and from the memory there is."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import shown
from devicekit.field_types import require_types
from devicekit.memory.kv import KVLayout
from devicekit.memory.paired_sizing import plan_paired
from devicekit.memory.sizing import KVPlan, plan_kv
from devicekit.memory.state import StateLayout
from devicekit.ranges import OutOfRange, finite, whole
from devicekit.scheduling.batch import ModelLimits
from devicekit.scheduling.limits import INVALID_LOGITS


@dataclass(frozen=True, slots=True)
class EngineConfig:
    """Sizes of an engine. The KV pool takes what memory allows, up to what ``max_running`` requests can use."""

    page_size: int = 16  # tokens
    max_running: int = 32  # requests with KV
    max_batch_tokens: int = 512  # tokens per forward pass, at most
    # How many times as long as usual running requests may wait for a token while prompts are computed. Passes are
    # measured, and take fewer tokens of prompts where needed; None: only ``max_batch_tokens`` bounds it.
    max_slowdown: float | None = 4.0
    memory_fraction: float = 0.9  # of the memory available once the weights are loaded
    reserve_bytes: int = 0  # kept free for activations and everything else
    kv_tokens: int | None = None  # size of the KV pool; None: as above
    policy: str = "fcfs"
    prefix_caching: bool = True
    host_kv_tokens: int = 0  # size of the second level of the prefix cache, in host memory; 0: none
    # States of recurrent layers kept for cached prefixes; None: as many as requests run; 0: none, and such models'
    # prefixes are not cached.
    state_snapshots: int | None = None
    # Where only some layers have a window: tokens of their own smaller pool. 0: they share the others' pool. None:
    # a pool of their own if memory is short, sized for what running requests look back at.
    window_kv_tokens: int | None = None
    conservativeness: float = 1.0  # lower admits more requests at once, at the price of retractions
    # Replay passes that only decode from captured graphs. None: where the device can, and is not the host.
    decode_graphs: bool | None = None
    random_seed: int | None = None  # whence requests without a seed get theirs; None: another each time
    invalid_logits: str = "refuse"  # what becomes of requests whose logits are NaN or infinite; or "mark"
    # Neither open nor take in weights that hold NaN or infinite values.
    refuse_nonfinite_weights: bool = False
    await_fleet: bool = False  # generate nothing until `JoinFleet` has found the weights to be the fleet's
    tensor_parallel: int | None = None  # ranks that hold one model together; None: each a copy of its own
    expert_parallel: bool = False  # they hold whole experts, instead of a part of each
    # Split also a model whose plan leaves its attention whole: every rank has all keys and values then.
    split_partly: bool = False
    checked: bool = False  # account for every page, row and state slot after every step: raises, and costs

    def __post_init__(self) -> None:
        for name in ("page_size", "max_running", "max_batch_tokens"):
            whole(name, getattr(self, name), least=1)
        for name in ("reserve_bytes", "host_kv_tokens"):
            whole(name, getattr(self, name))
        for name, least in (
            ("kv_tokens", 1),
            ("state_snapshots", 0),
            ("window_kv_tokens", 0),
            ("random_seed", 0),
            ("tensor_parallel", 1),
        ):
            if (value := getattr(self, name)) is not None:
                whole(name, value, least=least)
        finite("memory_fraction", self.memory_fraction, above=0)
        if self.memory_fraction > 1:
            raise OutOfRange(f"memory_fraction must be at most 1, not {self.memory_fraction}")
        finite("conservativeness", self.conservativeness, least=0)
        if self.max_slowdown is not None:
            finite("max_slowdown", self.max_slowdown, above=1)
        if self.invalid_logits not in INVALID_LOGITS:
            raise ConfigurationError(
                f"invalid_logits must be {' or '.join(INVALID_LOGITS)}, not {shown(self.invalid_logits)}"
            )
        require_types(self)

    @property
    def snapshots(self) -> int:
        """How many states of recurrent layers are kept for cached prefixes."""
        if not self.prefix_caching:
            return 0
        return self.max_running if self.state_snapshots is None else self.state_snapshots

    def require_ranks(self, size: int) -> None:
        """Raise ConfigurationError unless this many ranks can hold the model as was asked."""
        wanted = self.tensor_parallel
        if wanted is None:
            if self.expert_parallel or self.split_partly:
                raise ConfigurationError(
                    "expert_parallel and split_partly say how ranks share a model: give tensor_parallel too"
                )
            return
        if wanted != size:
            raise ConfigurationError(
                f"tensor_parallel is {wanted}, and this engine has {size} {'rank' if size == 1 else 'ranks'}: "
                f"start as many, as with torchrun --nproc-per-node {wanted}"
            )


def plan_pool(
    layout: KVLayout,
    limits: ModelLimits,
    available: int | None,
    config: EngineConfig,
    *,
    states: StateLayout | None = None,
    companions: Sequence[KVLayout] = (),
) -> KVPlan:
    """Size the KV pool: what fits, but no more than the running requests can ever use.

    Args:
        available: bytes that are free once the weights are loaded; ``None`` if the device does not say.
        states: what requests keep besides keys and values; it counts as reserved.
        companions: other models' keys and values, over the same pages.

    Raises:
        NotEnoughMemory: not even one short request fits.
        ConfigurationError: a setting is out of range or cannot be had with this model, or ``available`` is unknown
            and ``kv_tokens`` is not set.
    """
    most = config.kv_tokens
    if most is None and available is not None:
        most = config.max_running * -(-limits.max_positions // config.page_size) * config.page_size
    # Once in the pool, and once as the new states of a step before it is known to have succeeded.
    slots = 2 * (config.max_running + 1) + config.snapshots
    state_bytes = 0 if states is None else slots * states.bytes_per_slot
    plan = plan_kv(
        available,
        layout,
        page_size=config.page_size,
        max_running=config.max_running,
        max_positions=limits.max_positions,
        fraction=config.memory_fraction,
        reserve_bytes=config.reserve_bytes + state_bytes,
        max_tokens=most,
        companions=companions,
    )
    if not _may_pair(layout, config, states):
        return plan
    return plan_paired(
        plan,
        layout,
        max_batch_tokens=config.max_batch_tokens,
        max_tokens=most,
        window_tokens=config.window_kv_tokens,
    )


def _may_pair(layout: KVLayout, config: EngineConfig, states: StateLayout | None) -> bool:
    """Whether layers with a window may have a pool of their own; ConfigurationError if they must and may not."""
    wanted = config.window_kv_tokens
    obstacles = {
        "this model has no layers with a window beside layers without": layout.partial_window is None,
        "a host tier copies whole pages": config.host_kv_tokens > 0,
        "this model has recurrent layers": states is not None,
    }
    found = [obstacle for obstacle, holds in obstacles.items() if holds]
    if wanted and found:
        raise ConfigurationError(f"window_kv_tokens={wanted} cannot be had: {' and '.join(found)}")
    return not found and wanted != 0
