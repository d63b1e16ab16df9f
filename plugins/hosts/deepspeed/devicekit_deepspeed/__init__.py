"""DeepSpeed on any device that devicekit opens: ``devicekit_deepspeed.activate()``.

DeepSpeed has no discovery for accelerators from outside; its own call is ``set_accelerator``, which `activate`
makes. Installing this package changes nothing.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from devicekit_deepspeed.accelerator import DevicekitAccelerator

__all__ = ["activate"]


def activate(device: str | None = None) -> DevicekitAccelerator:
    """Make devicekit's default backend, or a named one, DeepSpeed's accelerator in this process.

    Args:
        device: as for `devicekit.get_device`.

    Raises:
        RuntimeError: ``DS_ACCELERATOR`` names another one, or DeepSpeed's processes have met already.
    """
    import deepspeed.comm
    from deepspeed.accelerator import set_accelerator

    from devicekit_deepspeed.accelerator import DevicekitAccelerator

    if (named := os.environ.get("DS_ACCELERATOR")) is not None:
        raise RuntimeError(
            f"DS_ACCELERATOR={named} chooses an accelerator of DeepSpeed's own. Unset it first."
        )
    if deepspeed.comm.is_initialized():
        raise RuntimeError("DeepSpeed's processes have met already. Activate devicekit before that.")
    accelerator = DevicekitAccelerator(device)
    set_accelerator(accelerator)
    return accelerator
