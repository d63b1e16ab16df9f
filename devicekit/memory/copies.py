"""Copies between host and device memory, beside the computation where the device can, and otherwise at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from devicekit.contract.handles import Event
from devicekit.device import Device

_NEEDED = ("current_stream", "create_stream", "use_stream", "create_event", "pin_memory")


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy that was begun. Until it is ``done`` neither side's memory may be used for anything else."""

    owner: str  # whom it is for
    pages: int
    event: Event | None = None  # None: it was finished when it was begun

    def done(self) -> bool:
        """Whether it has finished. Does not wait."""
        return self.event is None or self.event.query()

    def wait(self) -> None:
        """Block the calling thread until it has finished."""
        if self.event is not None:
            self.event.synchronize()


class Copier(Protocol):
    """Runs copies one after the other, behind everything that the device was given before."""

    @property
    def overlaps(self) -> bool:
        """Whether copies run beside the computation."""
        ...

    @property
    def reason(self) -> str | None:
        """Why copies do not overlap; ``None`` if they do."""
        ...

    def begin(self, work: Callable[[], None], *, blocks: bool) -> Event | None:
        """Have ``work`` submit a copy. With ``blocks``, computation that is submitted later waits for it.

        Returns:
            What becomes true when it has finished; ``None``: it has.
        """
        ...


@dataclass(frozen=True, slots=True)
class DirectCopier:
    """Copies at once, on the current stream or on the host."""

    reason: str | None
    overlaps: bool = False

    def begin(self, work: Callable[[], None], *, blocks: bool) -> Event | None:
        work()
        return None


class StreamCopier:
    """Copies on a stream of its own."""

    overlaps = True
    reason = None

    def __init__(self, device: Device) -> None:
        self._device = device
        self._stream = device.create_stream()

    def begin(self, work: Callable[[], None], *, blocks: bool) -> Event | None:
        device = self._device
        computing = device.current_stream()
        # What is copied must have been computed, and what is overwritten must have been read.
        self._stream.wait_stream(computing)
        event = device.create_event()
        with device.use_stream(self._stream):
            work()
            event.record(self._stream)
        if blocks:
            computing.wait_event(event)
        return event


def copier_for(device: Device) -> Copier:
    """The best copier that a device has."""
    missing = [hook for hook in _NEEDED if not device.supports(hook)]
    if missing:
        return DirectCopier(f"backend {device.backend.label} lacks {', '.join(missing)}")
    if not device.copies_overlap():
        return DirectCopier(f"on backend {device.backend.label} copies do not overlap with computation")
    return StreamCopier(device)
