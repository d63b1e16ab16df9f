"""Use a torch device that has no plugin: ``generic.register("mps")``, then ``devicekit.get_device("mps")``."""

from __future__ import annotations

from devicekit.contract import CAPABILITIES, CONTRACT_VERSION, Manifest
from devicekit.registry import Candidate, register_backend
from devicekit.registry.validation import implemented_hooks
from devicekit.torchlike.finding import Findings
from devicekit.torchlike.generic import GenericBackend


def register(device_type: str) -> Candidate:
    """Offer ``torch.<device_type>`` as a backend of that name in this process.

    It is never chosen by itself: ask for it by name, in code or in ``DEVICEKIT_BACKEND``. Each hook uses the
    vendor's module, else ``torch.accelerator``, ``torch.Stream`` and ``torch.Event``, decided here once, and
    capabilities are claimed where they were seen. `devicekit.unregister_backend` takes it back.

    Args:
        device_type: torch's name of the device, whose module must be there: import the vendor's package first.

    Raises:
        ImportError: torch has no such module.
        DuplicateBackend: a backend of this name is registered.
    """
    backend = GenericBackend(device_type)
    return register_backend(lambda: backend, _manifest(backend))


def backend_class(device_type: str, findings: Findings | None = None) -> type[GenericBackend]:
    """The class of what `register` offers, its manifest as the attribute ``manifest``.

    For a module of two lines that the conformance suite judges, before the device has a plugin. With ``findings``,
    as ``print(GenericBackend(device_type).findings)`` shows them, nothing is tried again when it is imported.

    Raises:
        ImportError: torch has no such module.
    """
    backend = GenericBackend(device_type, findings)

    class Backend(GenericBackend):
        manifest = _manifest(backend)

        def __init__(self) -> None:
            super().__init__(device_type, backend.findings)

    return Backend


def _manifest(backend: GenericBackend) -> Manifest:
    """What the backend can claim by what was seen of it."""
    device_type = backend.vendor.device_type
    hooks = implemented_hooks(backend)
    claimed = sorted(name for name in backend.findings.claims if hooks.issuperset(CAPABILITIES[name].hooks))
    indexed = device_type != "mps"  # torch knows one mps device, without an index
    return Manifest.parse(
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
