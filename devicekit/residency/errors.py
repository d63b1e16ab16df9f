"""What residency refuses.

::

    DeviceKitError
    └── ResidencyError              a call that makes no sense now
        ├── UnknownComponent        a mode or a use names a component that the pipeline does not have
        ├── UndeclaredComponent     a component is configured to be moved, and no stage declares that it uses it
        └── NoLayers                layer-wise offload of a component in which no list of layers is found
"""

from __future__ import annotations

from devicekit.contract.errors import ConfigurationError, DeviceKitError


class ResidencyError(DeviceKitError):
    """A call that makes no sense in the present state, or a configuration that cannot be honoured."""


class UnknownComponent(ResidencyError, ConfigurationError):
    """A mode or a use names a component that the pipeline does not have."""


class UndeclaredComponent(ResidencyError, ConfigurationError):
    """A component would be moved off the device, and nothing would bring it back: no stage declares its use."""


class NoLayers(ResidencyError, ConfigurationError):
    """Layer-wise offload needs a list of layers, and the component has none."""
