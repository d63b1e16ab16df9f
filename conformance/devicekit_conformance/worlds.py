"""What is so of a device is so whatever goes on beside: work, limits, others, and other defaults of torch."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import TypeAlias

import torch

from devicekit_conformance.context import MIB
from devicekit_conformance.effects.limits import total_of
from devicekit_conformance.measures import GIB
from devicekit_conformance.trial import Trial

__all__ = ["same_in_every_mode", "same_in_every_world", "worlds"]

_TAKEN = 64 * MIB
_ROOMY = 2 * GIB  # of which half is enough for all that is tried
# What a limit may be one of, and what sets it.
_LIMITS = frozenset({"allocator_settings", "set_memory_fraction"})


def same_in_every_world(trial: Trial, ask: Callable[[], str]) -> None:
    """Fail where ``ask`` is told something else in one of the worlds than outside of them."""
    before = ask()
    for name, world in (*worlds(trial), *_of_torch(trial)):
        with world:
            there = ask()
        trial.expect(there == before, f"{name} it says {there:.160}, and otherwise {before:.160}")


World: TypeAlias = tuple[str, AbstractContextManager[object]]


def _of_torch(trial: Trial) -> Iterator[World]:
    """Worlds that only an answer is asked in."""
    yield from _modes()
    others = getattr(trial.ctx.probe, "others_take", None)
    if callable(others):
        yield "while another process holds memory", others(trial.index, _TAKEN)


def _modes() -> Iterator[World]:
    yield "with another default dtype", _other_dtype()
    yield "in inference mode", torch.inference_mode()
    yield "without gradients", torch.no_grad()
    yield "where operators choose their type", torch.autocast("cpu")


def same_in_every_mode(trial: Trial, ask: Callable[[], object]) -> None:
    """Fail where ``ask``, whose answer stands still, is told something else in one of torch's own modes."""
    before = ask()
    if any(ask() != before for _ in range(4)):
        return
    for name, mode in _modes():
        with mode:
            there = ask()
        trial.expect(
            there == before or ask() != before, f"{name} it says {there!r:.160}, and else {before!r:.160}"
        )


def worlds(trial: Trial) -> Iterator[World]:
    """Worlds in which a hook does what it does otherwise."""
    yield "while work is pending", _busy(trial)
    limits = trial.ctx.claims("memory_fraction") and trial.has("set_memory_fraction")
    if limits and trial.hook not in _LIMITS and (total_of(trial, trial.index) or 0) >= _ROOMY:
        yield "with half of the memory allowed", _limited(trial)
    if trial.ctx.claims("streams") and trial.has("use_stream"):
        stream = trial.new_stream((trial.others or [trial.index])[-1])
        yield "in a block of use_stream()", trial.other("use_stream", stream)


@contextlib.contextmanager
def _busy(trial: Trial) -> Iterator[None]:
    for index in range(trial.count):
        trial.long_work(index=index)
        if trial.ctx.claims("streams") and trial.has("create_stream"):
            trial.long_work(trial.other("create_stream", index, 0), index)
    try:
        yield
    finally:
        trial.finish()


@contextlib.contextmanager
def _other_dtype() -> Iterator[None]:
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        yield
    finally:
        torch.set_default_dtype(before)


@contextlib.contextmanager
def _limited(trial: Trial) -> Iterator[None]:
    trial.other("set_memory_fraction", trial.index, 0.5)
    try:
        yield
    finally:
        trial.other("set_memory_fraction", trial.index, 1.0)
