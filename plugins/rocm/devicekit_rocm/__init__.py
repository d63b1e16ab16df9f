"""devicekit backend for AMD GPUs through torch.cuda of a ROCm build."""

from devicekit_rocm.backend import Backend

__all__ = ["Backend"]
