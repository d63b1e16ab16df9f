"""Checks a probe that stands in for the suite's own: a wrong one would judge the backend by nonsense."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

from devicekit_conformance.context import Context
from devicekit_conformance.plain_text import plain, told
from devicekit_conformance.target import Target, UsageError, load_object

if TYPE_CHECKING:
    from devicekit_conformance.judge import Nursery

_METHODS = ("tensor", "initialised", "current_index", "submit", "exhaust", "random", "held", "pinned")
_LIMIT = 120.0  # seconds
_SIZE = 4096  # bytes


def check_probe(nursery: Nursery, target: Target) -> None:
    """Try the target's probe in a worker process.

    Raises:
        UsageError: it is no probe; the text says why.
        RunnerError: no worker can be started.
    """
    from devicekit_conformance.judge import Worker

    worker = Worker(nursery, target)
    try:
        faults = worker.hindrance("probe", _LIMIT)
    finally:
        worker.kill()
    if faults:
        raise UsageError(
            f"The probe {target.probe} cannot stand in for the suite's own: {faults}. "
            "devicekit_conformance.probe.Probe says what each method promises."
        )


def faults_of_probe(context: Context) -> str:
    """What is wrong with the probe, in a process that may be spent on finding out; empty if nothing is."""
    address = context.target.probe
    if address is None:
        return ""
    try:
        context.opened  # noqa: B018  # a probe may need the backend's module
        count = context.device_count
    except BaseException:  # the backend's own fault, which its requirements will tell
        count = 0
    try:
        made, _ = load_object(address)
        probe = made()
    except BaseException as error:
        return f"it cannot be made: {told(error)}"
    absent = [name for name in _METHODS if not callable(getattr(probe, name, None))]
    if absent:
        return f"it has no {', '.join(absent)}"
    if count == 0:
        return ""
    try:
        return "; ".join(_faults(context, probe))
    except BaseException as error:
        return f"trying it raised {told(error)}"


def _faults(context: Context, probe: object) -> Iterator[str]:
    import torch

    def ask(name: str, *arguments: object) -> object:
        return getattr(probe, name)(*arguments)

    block = ask("tensor", _SIZE, 0)
    if not isinstance(block, torch.Tensor) or block.dtype is not torch.uint8 or block.numel() != _SIZE:
        yield f"tensor({_SIZE}, 0) returned {plain(type(block))}, not {_SIZE} elements of uint8"
    elif block.device.type == "cpu" and context.manifest.device_type != "cpu":
        yield "tensor() makes tensors on the host"
    for name, kinds in (("initialised", (bool,)), ("current_index", (int,))):
        value = ask(name)
        if value is not None and type(value) not in kinds:
            yield f"{name}() returned {plain(repr(value), 60)}, neither {kinds[0].__name__} nor None"
    held = ask("held", 0)
    if held is not None and (type(held) is not int or held < 0):
        yield f"held(0) returned {plain(repr(held), 60)}, neither bytes nor None"
    drawn = ask("random", 0, 5)
    if not isinstance(drawn, (list, tuple)) or len(drawn) != 5 or len(set(map(float, drawn))) < 2:
        yield f"random(0, 5) returned {plain(repr(drawn), 120)}, not five numbers that differ"
    token = ask("submit", 0, None)
    if token is not None and not callable(getattr(token, "done", None)):
        yield f"submit(0, None) returned {plain(type(token))}, which has no done()"
    context.hook("synchronize")(0)
    pinned = ask("pinned", torch.zeros(1))
    if pinned is not None and type(pinned) is not bool:
        yield f"pinned() returned {plain(repr(pinned), 60)}, neither bool nor None"
