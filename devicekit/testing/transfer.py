"""Copies between host and device, and when their bytes can be seen.

A blocking copy has happened when it returns. A ``non_blocking`` copy to or from *pinned* host memory is queued:

- device to host: the host tensor holds its old bytes, or poison if the copy made it, until the copy has retired;
- host to device: the source is read when the copy runs, which is when later work in its stream is submitted or
  when it retires, so a source that is overwritten too early is copied wrong, as on hardware;
- one after the other: what was copied to the host is read from there by a later copy in the same stream, or in one
  that waits for it, before the host itself can see it;
- either: work in another stream sees the old bytes unless it waits for an event or for the stream.

From pageable memory a non-blocking copy reads its source at once, and to pageable memory it waits, as drivers do.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

from devicekit.testing.host_memory import Arrival, PinnedMemory
from devicekit.testing.sim_device import AsyncCopy, Lease, SimDevice

__all__ = ["device_to_device", "device_to_host", "host_to_device"]


def host_to_device(
    device: SimDevice, destination: torch.Tensor, source: torch.Tensor, *, non_blocking: bool
) -> None:
    """Copy `source` on the host into `destination`, the bytes of a tensor on `device`."""
    device.machine.initialize()
    device.visit("copy")
    stream = device.machine.current_stream(device.index)
    seconds = device.machine.config.copy_seconds(destination.nbytes)
    pinned = device.machine.pinned
    if non_blocking and pinned.is_pinned(source):
        if device.capturing is not None:
            device.capturing.note_later(lambda: _copy(destination, source))
            return
        stream.submit("copy to device", seconds, lambda: _copy_arrived(pinned, destination, source))
        return
    device.refuse_capture("a copy that is not queued")
    stream.run_device_parts()
    _copy_arrived(pinned, destination, source)
    stream.submit("copy to device", seconds)
    if not non_blocking:
        device.wait_for_host()


def device_to_host(
    device: SimDevice,
    destination: torch.Tensor,
    source: torch.Tensor,
    lease: Lease | None,
    *,
    non_blocking: bool,
) -> None:
    """Copy `source`, the bytes of a tensor on `device`, into `destination` on the host."""
    device.machine.initialize()
    device.visit("copy")
    stream = device.machine.current_stream(device.index)
    seconds = device.machine.config.copy_seconds(source.nbytes)
    if non_blocking and device.machine.pinned.is_pinned(destination):
        if device.capturing is not None:
            device.capturing.note_later(lambda: _copy(destination, source))
            return
        copy = AsyncCopy(source, stream)
        leave, arrive = _in_two_parts(device.machine.pinned, destination, source)
        copy.operation = stream.submit("copy to host", seconds, device_part=leave, completion=arrive)
        if lease is not None and not copy.operation.done:
            lease.copies = [*(earlier for earlier in lease.copies if earlier.reads_later), copy]
        return
    device.refuse_capture("a copy that is not queued")
    stream.run_device_parts()
    _copy(destination, source)
    stream.submit("copy to host", seconds)
    device.wait_for_host()


def device_to_device(
    target: SimDevice, origin: SimDevice, destination: torch.Tensor, source: torch.Tensor
) -> None:
    """Copy between two devices, each on its current stream, the one that writes after the one that reads."""
    target.machine.initialize()
    target.visit("copy")
    for device in (target, origin):
        device.refuse_capture("a copy between devices")
    reading = origin.machine.current_stream(origin.index)
    writing = target.machine.current_stream(target.index)
    reading.run_device_parts()
    writing.run_device_parts()
    _copy(destination, source)
    seconds = target.machine.config.copy_seconds(destination.nbytes)
    writing.wait_stream(reading)
    writing.submit("copy between devices", seconds)
    reading.wait_stream(writing)


def _in_two_parts(
    pinned: PinnedMemory, destination: torch.Tensor, source: torch.Tensor
) -> tuple[Callable[[], None], Callable[[], None]]:
    """What takes the bytes of a copy to the host, and what puts them where the host sees them."""
    left: list[Arrival] = []

    def leave() -> None:
        left.append(Arrival(destination, source.clone()))
        pinned.arriving.append(left[0])

    def arrive() -> None:
        pinned.arriving[:] = [one for one in pinned.arriving if one is not left[0]]
        _copy(destination, left.pop().data)

    return leave, arrive


def _copy_arrived(pinned: PinnedMemory, destination: torch.Tensor, source: torch.Tensor) -> None:
    """Copy what `source` holds for the device: with what copies to the host wrote and the host cannot see yet."""
    address = source.untyped_storage().data_ptr()
    arrivals = [one for one in pinned.arriving if one.to.untyped_storage().data_ptr() == address]
    seen_by_host = [one.to.clone() for one in arrivals]
    for one in arrivals:
        _copy(one.to, one.data)
    _copy(destination, source)
    for one, data in zip(reversed(arrivals), reversed(seen_by_host), strict=True):
        _copy(one.to, data)


def _copy(destination: torch.Tensor, source: torch.Tensor) -> None:
    with torch.no_grad():
        destination.copy_(source)
