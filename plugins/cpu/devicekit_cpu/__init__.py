"""devicekit backend for the host processor."""

from devicekit_cpu.backend import Backend

__all__ = ["Backend"]
