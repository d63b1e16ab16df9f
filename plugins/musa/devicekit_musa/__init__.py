"""devicekit backend for Moore Threads GPUs through torch_musa."""

from devicekit_musa.backend import Backend

__all__ = ["Backend"]
