"""Use a torch device that has no plugin: ``generic.register("mps")``, then ``devicekit.get_device("mps")``."""

from __future__ import annotations

from devicekit.contract import CAPABILITIES, CONTRACT_VERSION, Manifest
from devicekit.registry import Candidate, register_backend
from devicekit.registry.validation import implemented_hooks
from devicekit.torchlike.effects import shown_by_effect
from devicekit.torchlike.generic import GenericBackend

# Having the functions does not show that these are true.
_NOT_SHOWN_BY_HOOKS = frozenset({"async_copies", "unified_memory", "peak_memory"})


def register(device_type: str) -> Candidate:
    """Offer ``torch.<device_type>`` as a backend of that name in this process.

    It is never chosen by itself: ask for it by name, in code or in ``DEVICEKIT_BACKEND``. Each hook uses the
    vendor's module, else ``torch.accelerator``, decided here once; `devicekit.unregister_backend` takes it back.

    Args:
        device_type: torch's name of the device, whose module must be there: import the vendor's package first.

    Raises:
        ImportError: torch has no such module.
        DuplicateBackend: a backend of this name is registered.
    """
    backend = GenericBackend(device_type)
    hooks = implemented_hooks(backend)
    claimed = [
        name
        for name, capability in CAPABILITIES.items()
        if name not in _NOT_SHOWN_BY_HOOKS
        and hooks.issuperset(capability.hooks)
        and shown_by_effect(backend, name)
    ]
    indexed = device_type != "mps"  # torch knows one mps device, without an index
    manifest = Manifest.parse(
        {
            "backend": {
                "name": device_type,
                "device_type": device_type,
                "contract": f">={CONTRACT_VERSION},<{CONTRACT_VERSION.major + 1}",
                "collective_backend": backend.vendor.collective_backend or "",
                "visible_devices_variable": backend.vendor.visible_devices_variable or "",
                "capabilities": claimed,
                "noop": [] if indexed else ["set_index"],
                "indexed": indexed,
                "automatic": False,
            }
        }
    )
    return register_backend(lambda: backend, manifest)
