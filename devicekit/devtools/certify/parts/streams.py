"""Streams and events order work; copies from pinned memory run beside computation where the backend says so."""

from __future__ import annotations

import time
from collections.abc import Callable

import torch

from devicekit.device import Device
from devicekit.devtools.certify.ground import Ground
from devicekit.devtools.certify.record import Findings, Skipped

_COPY = 512 << 20  # bytes
_SIDE = 4096
_GAIN = 0.9  # of the time that both take one after the other


def run(ground: Ground, findings: Findings) -> None:
    """Order first, then overlap."""
    device = ground.device
    needed = ("create_stream", "use_stream", "create_event", "current_stream")
    missing = [hook for hook in needed if not device.supports(hook)]
    if missing:
        raise Skipped(f"backend {device.backend.label} has no {', '.join(missing)}")
    findings.check("work behind an event sees what came before it", _ordered(device))
    first = device.current_stream()
    with device.use_stream(device.create_stream()):
        inside = device.current_stream()
    findings.check(
        "the stream is another inside the block, and the former one after it",
        inside != first and device.current_stream() == first,
    )
    claimed = device.copies_overlap() if device.supports("copies_overlap") else None
    findings.note(f"the backend says that copies overlap: {claimed}")
    if not ground.real or not device.supports("pin_memory"):
        findings.check(
            "copies overlap with computation as claimed", None, "no real accelerator: times mean nothing"
        )
        return
    _overlap(device, claimed, findings)


def _ordered(device: Device) -> bool:
    """A chain of work that goes to and fro between two streams, each link behind an event."""
    streams = (device.create_stream(), device.create_stream())
    value = torch.zeros(1 << 16, device=device.torch_device)
    origin = device.create_event()
    origin.record(device.current_stream())
    for stream in streams:
        stream.wait_event(origin)
    for step in range(64):
        here, there = streams[step % 2], streams[(step + 1) % 2]
        with device.use_stream(here):
            value.mul_(1.0).add_(1.0)
            event = device.create_event()
            event.record(here)
        there.wait_event(event)
    device.synchronize()
    return bool((value == 64).all().item())


def _overlap(device: Device, claimed: bool | None, findings: Findings) -> None:
    host = device.pin_memory(torch.ones(_COPY, dtype=torch.uint8))
    target = torch.empty(_COPY, dtype=torch.uint8, device=device.torch_device)
    matrix = torch.randn(_SIDE, _SIDE, device=device.torch_device)
    side = device.create_stream()

    def copy() -> None:
        with device.use_stream(side):
            target.copy_(host, non_blocking=True)

    def compute(times: int) -> None:
        for _ in range(times):
            torch.mm(matrix, matrix)

    one = _seconds(device, lambda: compute(8)) / 8
    copying = _seconds(device, copy)
    times = max(1, round(copying / one))
    computing = _seconds(device, lambda: compute(times))

    def both() -> None:
        copy()
        compute(times)

    together = _seconds(device, both)
    findings.number("copy of 512 MiB to the device alone", copying * 1e3, "ms")
    findings.number("bandwidth of that copy", _COPY / copying / 1e9, "GB/s")
    findings.number("computation alone", computing * 1e3, "ms")
    findings.number("both at once", together * 1e3, "ms")
    overlapped = together < _GAIN * (copying + computing)
    holds = None if claimed is None else overlapped == claimed
    findings.check(
        "copies overlap with computation as claimed", holds, f"claimed: {claimed}, seen: {overlapped}"
    )
    findings.check("what was copied is what was sent", bool((target[:: 1 << 12] == 1).all().item()))


def _seconds(device: Device, work: Callable[[], None]) -> float:
    """The least of five runs."""
    best = float("inf")
    for _ in range(6):
        device.synchronize()
        started = time.perf_counter()
        work()
        device.synchronize()
        best = min(best, time.perf_counter() - started)
    return best
