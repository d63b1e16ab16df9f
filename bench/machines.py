"""Simulated machines for benchmarks: bytes and virtual seconds are the same on every run."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from devicekit.device import Device, get_device
from devicekit.registry import discover, unregister_backend
from devicekit.testing import KIB, SimConfig, Simulator, simulation


def fine_grained(**changes: float) -> SimConfig:
    """A machine whose allocator works in kibibytes, in proportion to models of megabytes."""
    sizes = {
        "small_limit": 4 * KIB,
        "small_segment": 64 * KIB,
        "large_limit": 64 * KIB,
        "large_segment": 64 * KIB,
        "segment_rounding": 4 * KIB,
    }
    return SimConfig(**{**sizes, **changes})  # type: ignore[arg-type]  # names and types are SimConfig's own


@contextmanager
def simulated(config: SimConfig) -> Iterator[tuple[Simulator, Device]]:
    """A fresh machine, and its first device as a backend gives it; afterwards nobody is offered that backend."""
    from devicekit.testing.sim_backend import register

    with simulation(config) as machine:
        known = {candidate.name for candidate in discover()}
        name = register().name
        try:
            yield machine, get_device(name)
        finally:
            if name not in known:
                unregister_backend(name)
