"""A peer that can be run here, and how the ones there are are found."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

MODULES = ("nano_vllm", "vllm", "sglang")

Case = Callable[[int], Callable[[], float]]
"""Given a size: runs a few operations and returns the CPU seconds of one."""


@dataclass(frozen=True, slots=True)
class Peer:
    """One of the engines."""

    name: str
    version: str
    stubbed: str  # what stands in for parts of it
    cases: Mapping[str, Case] = field(default_factory=dict)


def peers() -> tuple[list[Peer], dict[str, str]]:
    """Those that can be run, and why the others cannot."""
    found: list[Peer] = []
    absent: dict[str, str] = {}
    for name in MODULES:
        module = importlib.import_module(f"bench.peers.{name}")
        try:
            found.append(module.load())
        except Exception as error:  # whatever another program's import can raise
            absent[module.NAME] = f"{type(error).__name__}: {error}".splitlines()[0][:160]
    return found, absent
