"""Every error devicekit raises on its own account.

::

    DeviceKitError
    ├── ConfigurationError          a setting, variable or argument that cannot be honoured
    ├── ContractError               a plugin breaks the contract
    │   ├── ManifestError           backend.toml is missing, unreadable or wrong
    │   ├── IncompatibleBackend     contract, torch or vendor version out of the plugin's range
    │   └── InvalidHooks            a hook is unknown, missing or has the wrong signature
    ├── SelectionError              no backend can be chosen
    │   ├── UnknownBackend          nothing of that name is installed
    │   ├── BrokenDistribution      an installed distribution's metadata is broken, or hidden by another's
    │   ├── DuplicateBackend        two distributions claim one name
    │   ├── BackendUnavailable      the plugin is sound and finds no hardware
    │   └── BackendLoadError        the plugin could not be imported, constructed or probed
    │       └── TorchImportError    torch itself cannot be imported; the first cause is chained
    └── DeviceError                 an operation on an opened device
        ├── InvalidDevice           an index or device that does not exist on this backend
        ├── UnsupportedHook         the backend does not implement what was asked
        └── HookError               the backend's hook raised (the cause is chained)
            └── HookResultError     the backend's hook returned something the contract does not allow

Out-of-memory is the exception: a backend's own out-of-memory error reaches the caller with its type intact,
because ``except torch.OutOfMemoryError`` is what callers already write.

All of them can be pickled, so that they cross process boundaries.
"""

from __future__ import annotations


class DeviceKitError(Exception):
    """Root of every error devicekit raises on its own account."""


class ConfigurationError(DeviceKitError):
    """A setting, environment variable or argument that cannot be honoured."""


class ContractError(DeviceKitError):
    """A plugin breaks the contract. ``problems`` lists every fault found, not only the first."""

    def __init__(self, message: str, *, backend: str = "", problems: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.backend = backend
        self.problems = problems


class ManifestError(ContractError):
    """``backend.toml`` is missing, unreadable or wrong."""


class IncompatibleBackend(ContractError):
    """The plugin's contract, torch or vendor range excludes what is installed."""


class InvalidHooks(ContractError):
    """A hook is unknown, missing, or has a signature that the contract does not define."""


class SelectionError(DeviceKitError):
    """No backend can be chosen. ``backend`` is the name in question, or empty."""

    def __init__(self, message: str, *, backend: str = "") -> None:
        super().__init__(message)
        self.backend = backend


class UnknownBackend(SelectionError):
    """Nothing of that name is installed or registered."""


class BrokenDistribution(SelectionError):
    """An installed distribution's entry points or metadata are broken, or hidden by another folder of its name."""


class DuplicateBackend(SelectionError):
    """Two distributions claim one backend name."""


class BackendUnavailable(SelectionError):
    """The plugin is sound, but finds no hardware on this machine."""


class BackendLoadError(SelectionError):
    """The plugin could not be imported, constructed or probed. The cause is chained."""


class TorchImportError(BackendLoadError):
    """torch itself cannot be imported. The first try's cause is chained: later tries fail for other reasons."""


class DeviceError(DeviceKitError):
    """An operation on an opened device failed."""

    def __init__(self, message: str, *, backend: str = "", hook: str = "") -> None:
        super().__init__(message)
        self.backend = backend
        self.hook = hook


class InvalidDevice(DeviceError):
    """An index or device that does not exist on this backend."""


class UnsupportedHook(DeviceError):
    """The backend does not implement ``hook``. ``device.supports(hook)`` asks first."""


class HookError(DeviceError):
    """The backend's hook raised. The cause is chained as ``__cause__``."""


class HookResultError(HookError):
    """The backend's hook returned something the contract does not allow."""
