"""A device beyond the basics: its abilities, streams for good, shared pools, settings, pinned memory."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext

import torch

from devicekit.contract.errors import UnsupportedHook
from devicekit.contract.handles import Event, Stream
from devicekit.contract.hooks import BackendSpec
from devicekit.contract.records import AllocatorSetting, Telemetry
from devicekit.registry.opened import OpenedBackend
from devicekit.registry.probing import probe

# Both mean "8-bit float" to an engine, and a checkpoint's numbers are another format's on the wrong one.
_SWITCHING = frozenset({"current_index", "set_index"})
_FLOAT8 = ("float8_e4m3fn", "float8_e4m3fnuz")


class DeviceControls:
    """Methods of `devicekit.Device`, most of them over hooks of contract 1.1."""

    __slots__ = ()

    backend: OpenedBackend
    index: int
    _hooks: BackendSpec

    # -- What it is and can -----------------------------------------------------------------------------------

    @property
    def device_count(self) -> int:
        """How many devices of this backend the process sees."""
        return probe(self.backend).device_count

    def supported_dtypes(self) -> frozenset[torch.dtype] | None:
        """The dtypes in which the device multiplies matrices; ``None`` if unknown."""
        return self._hooks.supported_dtypes(self.index)

    def float8_dtype(self) -> torch.dtype | None:
        """The 8-bit float with four bits of exponent that the device has; ``None`` if it has none, or unknown."""
        known = self.supported_dtypes() or ()
        return next((dtype for name in _FLOAT8 if (dtype := getattr(torch, name, None)) in known), None)

    def can_access_peer(self, peer: int) -> bool | None:
        """Whether kernels here can reach the memory of the backend's device ``peer``; ``None`` if unknown."""
        return self._hooks.can_access_peer(self.index, peer)

    def telemetry(self) -> Telemetry:
        """Temperature (°C), power (W), utilisation (0 to 1) and clocks (Hz), each ``None`` where unknown."""
        return self._hooks.telemetry(self.index)

    # -- Streams and events -----------------------------------------------------------------------------------

    def make_current(self) -> None:
        """Make this device the calling thread's current one, for good; `Device.current` does it for a block.

        Raises:
            UnsupportedHook: the backend cannot switch devices, and this is not its only one.
        """
        if self.backend.manifest.indexed:
            self._hooks.set_index(self.index)

    def current_where_possible(self) -> AbstractContextManager[None]:
        """As `Device.current`; does nothing on a backend that has one device, or cannot switch devices."""
        return self.current() if self.switches else nullcontext()

    @property
    def switches(self) -> bool:
        """Whether a thread's current device may be another one, and can be changed to this."""
        backend = self.backend
        able = backend.manifest.indexed and backend.implemented.issuperset(_SWITCHING)
        return able and backend.device_count != 1

    def current(self) -> AbstractContextManager[None]:
        """See `devicekit.Device.current`."""
        raise NotImplementedError

    def default_stream(self) -> Stream:
        """The stream that is current in a thread that set none."""
        return self._hooks.default_stream(self.index)

    def set_current_stream(self, stream: Stream) -> None:
        """Make ``stream`` the calling thread's current one on its device, until another is set."""
        self._hooks.set_current_stream(stream)

    def native_handle(self, stream: Stream) -> int:
        """The stream as the vendor's own libraries take it: the value of a pointer."""
        return self._hooks.native_handle(stream)

    def priority_range(self) -> tuple[int, int] | None:
        """The lowest and the highest priority of a stream, as in ``(0, -5)``; ``None`` if unknown."""
        return self._hooks.priority_range(self.index)

    def submit_work(self) -> bool:
        """Send off recorded work without waiting. False: this device is not lazy, and nothing waits."""
        if "submit_work" not in self.backend.implemented:
            return False
        self._hooks.submit_work(self.index)
        return True

    def graph_pool(self) -> object:
        """A pool that captures can share: ``create_graph(pool=...)``."""
        return self._hooks.graph_pool(self.index)

    def export_event(self, event: Event) -> object:
        """A picklable handle of an event made with ``create_event(interprocess=True)``."""
        return self._hooks.export_event(event)

    def import_event(self, handle: object) -> Event:
        """The event behind a handle from `export_event` of another process."""
        return self._hooks.import_event(self.index, handle)

    # -- Memory -----------------------------------------------------------------------------------------------

    def allocator_settings(self) -> Sequence[AllocatorSetting] | None:
        """Every setting of the allocator, and whether it can still be changed; ``None`` if they cannot be seen."""
        return self._hooks.allocator_settings()

    def set_allocator_setting(self, name: str, value: str) -> None:
        """Change one setting of the allocator for this process."""
        self._hooks.set_allocator_setting(name, value)

    def is_pinned(self, tensor: torch.Tensor) -> bool | None:
        """Whether a host tensor is page-locked; ``None`` if unknown."""
        return self._hooks.is_pinned(tensor)

    def empty_pinned(self, shape: Sequence[int], dtype: torch.dtype | None = None) -> torch.Tensor:
        """An uninitialised host tensor in page-locked memory, for copies that overlap.

        Raises:
            UnsupportedHook: the backend has no page-locked memory.
        """
        if "pin_memory" not in self.backend.implemented:
            raise UnsupportedHook(
                f"Backend {self.backend.label} does not implement pin_memory(tensor). "
                "Ask first with device.supports('pin_memory').",
                backend=self.backend.name,
                hook="pin_memory",
            )
        current = torch.accelerator.current_accelerator()
        if current is not None and current.type == self.backend.manifest.device_type:
            try:
                with self.current_where_possible():
                    return torch.empty(shape, dtype=dtype, pin_memory=True)
            except RuntimeError:  # a device without an allocator of its own for such memory
                pass
        with self.current_where_possible():
            return self._hooks.pin_memory(torch.empty(shape, dtype=dtype))

    def register_host_memory(self, tensor: torch.Tensor) -> None:
        """Page-lock the memory of a contiguous host tensor where it is."""
        with self.current_where_possible():
            self._hooks.register_host_memory(tensor)

    def unregister_host_memory(self, tensor: torch.Tensor) -> None:
        """Undo `register_host_memory`, before the tensor goes."""
        with self.current_where_possible():
            self._hooks.unregister_host_memory(tensor)

    # -- Random -----------------------------------------------------------------------------------------------

    def manual_seed_all(self, seed: int) -> None:
        """Seed the default generator of every device of this backend alike."""
        for index in range(self.device_count):
            self._hooks.manual_seed(index, seed)
