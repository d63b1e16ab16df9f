"""How many blocks fit beside the weights and what a pass needs."""

from __future__ import annotations

import logging

import devicekit

from .config import EngineConfig

_log = logging.getLogger(__name__)


def begin_measuring() -> None:
    """Forget what was used so far, before the largest pass is run."""
    devicekit.current_device().synchronize()
    devicekit.current_device().release_cache()
    devicekit.current_device().reset_peak_memory_stats()


def blocks_that_fit(config: EngineConfig, block_bytes: int) -> int:
    """Blocks in what the largest pass, which has just been run, leaves free."""
    devicekit.current_device().release_cache()
    free, total = devicekit.current_device().memory_info().free_and_total
    peak = devicekit.current_device().memory_stats().peak_allocated
    current = devicekit.current_device().memory_stats().allocated
    if free is None or total is None:
        raise RuntimeError("the device does not say how much memory is free")
    activations = config.activation_bytes if peak is None or current is None else peak - current
    usable = int(total * config.memory_share) - (total - free) - activations
    blocks = usable // block_bytes
    if config.max_blocks is not None:
        blocks = min(blocks, config.max_blocks)
    if blocks <= config.blocks_per_sequence:
        raise RuntimeError(f"{usable} bytes are left: too few for one sequence")
    return int(blocks)


def log_memory(what: str) -> None:
    """One line of where the memory is."""
    name = devicekit.current_device().properties().name
    allocated = devicekit.current_device().memory_stats().allocated
    amount = "unknown" if allocated is None else f"{allocated / 2**20:.1f} MiB"
    _log.info("%s on %s: %s allocated", what, name, amount)
