"""Readings that several requirements share, each by the road that the hook under test cannot steer."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, cast

from devicekit_conformance.context import MIB, Context, NotApplicable, expect

if TYPE_CHECKING:
    import torch

    from devicekit.contract.records import MemoryInfo, MemoryStats
    from devicekit_conformance.trial import Trial

# Constants, never derived from what is under test: a backend that reports MiB would choose its own test size.
BLOCK = 24 * MIB
LARGE = 256 * MIB
GIB = 1 << 30
_COARSE = 64 * 1024  # what is always a multiple of so much is counted in pages
# Seconds before a reading of the driver's figures, which show what was done within one by the contract.
PAUSES = (0.0, 0.1, 1.0)
ROUNDING = 64 * MIB  # the largest page in which an honest allocator may count


def granule(numbers: Sequence[int]) -> int:
    """The page in which these numbers are counted; 0 where they are counted exactly."""
    common = math.gcd(*numbers) if numbers else 0
    return min(common, ROUNDING) if common >= _COARSE else 0


def in_time(judge: Callable[[Callable[[], None]], str]) -> str:
    """What ``judge`` says is wrong though it pauses before each reading; empty if nothing is, after any pause."""
    told = ""
    for seconds in PAUSES:
        told = judge(partial(time.sleep, seconds))
        if not told:
            break
    return told


def large_of(trial: Trial, index: int | None = None) -> int:
    """A large block's size: `LARGE`, or less where torch itself says that the device is small."""
    own = trial.own("mem_get_info", trial.index if index is None else index)
    return LARGE if own is None or own[1] >= 8 * LARGE else 32 * MIB


def block_of(trial: Trial, index: int) -> int:
    """`BLOCK`, or a third of it where the device has no room for many."""
    return BLOCK if large_of(trial, index) == LARGE else BLOCK // 3


def within_the_machine(total: int) -> str:
    """Why so many bytes cannot be what the host has for this process; empty where they can."""
    try:
        page, pages = os.sysconf("SC_PAGE_SIZE"), os.sysconf("SC_PHYS_PAGES")
        held = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1]) * page
    except (OSError, ValueError, IndexError):
        return ""
    if total > page * pages:
        return f"the machine has {page * pages} bytes"
    return f"this process alone holds {held} bytes" if total < held else ""


def stats(ctx: Context, index: int = 0) -> MemoryStats:
    """The backend's statistics, of the right type."""
    return cast("MemoryStats", ctx.result("memory_stats", index))


def info(ctx: Context, index: int = 0) -> MemoryInfo:
    """The driver's figures, of the right type."""
    return cast("MemoryInfo", ctx.result("memory_info", index))


def known(value: int | None, name: str) -> int:
    """``value``, where the backend knows it; what is no number is a failure."""
    if value is None:
        raise NotApplicable(f"{name} is unknown on this backend")
    expect(type(value) is int, f"{name} is {value!r}, which is no int")
    return value


def held(ctx: Context, index: int = 0) -> int:
    """Bytes that the allocator holds: by torch's own count if there is one, else by the backend's."""
    seen = ctx.probe.held(index)
    if seen is None and ctx.has("memory_stats"):
        seen = stats(ctx, index).reserved
    return known(seen, "reserved memory")


def settle(ctx: Context, index: int = 0) -> None:
    """Finish all work and empty the cache, so that what follows starts from the same state."""
    ctx.hook("synchronize")(index)
    if ctx.has("empty_cache"):
        ctx.hook("empty_cache")()


def filled(ctx: Context, size: int, value: int) -> torch.Tensor:
    """A live block whose every byte is ``value``."""
    return ctx.probe.tensor(size, 0).fill_(value)


def intact(block: torch.Tensor, value: int) -> bool:
    """Whether every byte of the block is still ``value``."""
    return bool((block == value).all().item())
