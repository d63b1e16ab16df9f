"""The vendor's module, its version and its quirks: what a backend's hooks are built on."""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from types import ModuleType

import torch

from devicekit.torchlike import allocator, statistics
from devicekit.torchlike.needs import has, hide, hide_unmet
from devicekit.torchlike.quirks import Quirk, applicable
from devicekit.torchlike.vendor import Vendor


class VendorModule:
    """Finds the vendor's module, decides once which hooks it can serve, and makes the others absent.

    The methods below are what a plugin overrides where its vendor differs.

    Attributes:
        vendor: the vendor's facts; a subclass sets it.
        module: the vendor's module.
        version: the vendor's version, against which quirks are gated.
        quirks: the traps this version has.

    Args:
        without_quirks: names of quirks to switch off, for tests.
    """

    vendor: Vendor

    def __init__(self, *, without_quirks: Collection[str] = ()) -> None:
        self.module = self._load()
        self.version = self._version()
        self.quirks: tuple[Quirk, ...] = applicable(self.vendor.quirks, self.version, without_quirks)
        self._quirk_names = frozenset(quirk.name for quirk in self.quirks)
        self._source = f"torch.{self.vendor.device_type}"
        self._keys = statistics.KEYS
        # Asked once for each device: a driver outlives the processes that use it.
        self._driver_version = functools.cache(self._ask_driver_version)
        hide_unmet(self, self.module)
        self._empty_host_cache = self._find_empty_host_cache()
        for hook, known in (
            ("create_graph", has(self.module, self.vendor.graph_class)),
            ("native_handle", self.vendor.stream_handle is not None),
            ("telemetry", any(has(self.module, name) for name, _ in self.vendor.telemetry.values())),
            ("allocator_settings", self.vendor.torch_allocator and allocator.readable()),
            ("set_allocator_setting", self.vendor.torch_allocator and allocator.writable(self.module)),
            ("supported_dtypes", type(self)._dtypes is not VendorModule._dtypes),
            ("copies_overlap", self.vendor.copies_overlap is not None),
            ("empty_host_cache", self._empty_host_cache is not None),
            ("collective_backend", self.vendor.collective_backend is not None),
            ("visible_devices_variable", self.vendor.visible_devices_variable is not None),
        ):
            if not known:
                hide(self, hook)

    def _load(self) -> ModuleType:
        """The vendor's module. Raises ImportError if it is not there."""
        device_type = self.vendor.device_type
        module = getattr(torch, device_type, None)
        if module is None:
            raise ImportError(f"torch {torch.__version__} has no torch.{device_type}.")
        # An impersonator may have put an object in its place, which the probe refuses.
        found: ModuleType = module
        return found

    def _version(self) -> str:
        """The version that quirks are gated on: torch's, unless the vendor ships a package of its own."""
        return str(torch.__version__)

    def _is_built(self) -> bool:
        """Whether this torch was built for this vendor's devices, and not for an impersonator's."""
        asked = getattr(self.module, "_is_compiled", None)
        return asked is None or bool(asked())  # a module that does not tell is there because it was built

    def _architecture(self, found: object) -> str | None:
        """The vendor's word for the architecture of a properties object."""
        return None

    def _capability(self, found: object) -> tuple[int, int] | None:
        """The comparable version of the architecture of a properties object."""
        return None

    def _physical(self, index: int) -> tuple[int | None, str | None]:
        """The device's index among all of the machine, and its PCI address, by the management library."""
        return None, None

    def _dtypes(self, found: object) -> frozenset[torch.dtype] | None:
        """The dtypes in which the device of a properties object multiplies matrices."""
        return None

    def _ask_driver_version(self, index: int) -> str | None:
        """The version of the device's driver; ``None`` where the vendor does not tell."""
        return None

    def _find_empty_host_cache(self) -> Callable[[], object] | None:
        """The function that empties the pinned cache, or ``None``."""
        name = self.vendor.host_empty_cache
        return None if name is None else getattr(self.module, name, None)

    def _empty_cache(self) -> None:
        """Empty the cache of a device in use, outside any capture that would forbid it."""
        self.module.empty_cache()

    def _has_quirk(self, name: str) -> bool:
        return name in self._quirk_names

    def _is_used(self) -> bool:
        """Whether this process has initialised the device, and may ask it anything."""
        return not self._in_bad_fork() and self._is_initialized()

    def _is_initialized(self) -> bool:
        """Whether the vendor's context exists. A module that does not tell is asked its questions outright."""
        asked = getattr(self.module, "is_initialized", None)
        return asked is None or bool(asked())

    def _in_bad_fork(self) -> bool:
        asked = getattr(self.module, "_is_in_bad_fork", None)
        return asked is not None and bool(asked())

    def _captures(self) -> bool:
        """Whether the current stream captures a graph, as far as the vendor tells."""
        asked = getattr(self.module, "is_current_stream_capturing", None)
        return asked is not None and bool(asked())
