"""How many blocks fit beside the weights and what a pass needs."""

from __future__ import annotations

import logging

import torch

from .config import EngineConfig

_log = logging.getLogger(__name__)


def begin_measuring() -> None:
    """Forget what was used so far, before the largest pass is run."""
    torch.cuda.synchronize()
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats()


def blocks_that_fit(config: EngineConfig, block_bytes: int) -> int:
    """Blocks in what the largest pass, which has just been run, leaves free."""
    torch.cuda.empty_cache()
    free, total = torch.cuda.mem_get_info()
    peak = torch.cuda.memory_stats()["allocated_bytes.all.peak"]
    current = torch.cuda.memory_stats()["allocated_bytes.all.current"]
    usable = int(total * config.memory_share) - (total - free) - (peak - current)
    blocks = usable // block_bytes
    if config.max_blocks is not None:
        blocks = min(blocks, config.max_blocks)
    if blocks <= config.blocks_per_sequence:
        raise RuntimeError(f"{usable} bytes are left: too few for one sequence")
    return int(blocks)


def log_memory(what: str) -> None:
    """One line of where the memory is."""
    name = torch.cuda.get_device_name()
    allocated = torch.cuda.memory_allocated() / 2**20
    _log.info("%s on %s: %.1f MiB allocated", what, name, allocated)
