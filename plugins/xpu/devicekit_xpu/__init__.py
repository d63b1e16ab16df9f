"""devicekit backend for Intel GPUs through torch.xpu."""

from devicekit_xpu.backend import Backend

__all__ = ["Backend"]
