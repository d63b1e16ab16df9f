"""Lightning on any device that devicekit opens: ``register()``, then ``Trainer(accelerator="devicekit")``.

Installing this package changes nothing: Lightning knows the names once `register` was called.
"""

from __future__ import annotations

from devicekit_lightning.accelerator import DevicekitAccelerator
from devicekit_lightning.registering import register

__all__ = ["DevicekitAccelerator", "register"]
