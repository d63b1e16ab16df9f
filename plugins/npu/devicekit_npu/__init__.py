"""devicekit backend for Ascend NPUs through torch_npu."""

from devicekit_npu.backend import Backend

__all__ = ["Backend"]
