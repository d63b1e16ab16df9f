"""Brings a component to the device before its use, where there is room, and records how that went."""

from __future__ import annotations

import enum
from dataclasses import dataclass

import torch

from devicekit.contract.records import ErrorKind
from devicekit.device import Device, available_memory
from devicekit.oom import forget_tensors
from devicekit.residency.modes import Strategy


class PrefetchOutcome(str, enum.Enum):
    """How an attempt to bring a component early went."""

    STARTED = "started"
    NO_ROOM = "not enough memory is free"
    UNKNOWN_ROOM = "the backend does not say how much memory is free"
    OUT_OF_MEMORY = "the device ran out of memory"
    UNUSED = "given up, as no use came for it"


@dataclass(frozen=True, slots=True)
class Prefetch:
    """One attempt to bring a component early."""

    component: str
    outcome: PrefetchOutcome


def try_prefetch(
    strategy: Strategy, device: Device, dtype: torch.dtype | None, margin: int
) -> PrefetchOutcome:
    """Begin to bring a component to the device, if ``margin`` bytes stay free besides.

    Raises:
        whatever the copy raises, but for out of memory: then the component is brought in time instead.
    """
    free = available_memory(device).bytes
    if free is None:
        return PrefetchOutcome.UNKNOWN_ROOM
    if free < strategy.bytes + margin:
        return PrefetchOutcome.NO_ROOM
    try:
        strategy.prefetch(dtype)
    except Exception as error:
        if device.classify_error(error) is not ErrorKind.OUT_OF_MEMORY:
            raise
        forget_tensors(error)
        return PrefetchOutcome.OUT_OF_MEMORY
    return PrefetchOutcome.STARTED
