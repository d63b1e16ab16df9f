"""devicekit backend for NVIDIA GPUs through torch.cuda."""

from devicekit_cuda.backend import Backend

__all__ = ["Backend"]
