"""The memory helpers of accelerate and transformers, for any device that devicekit opens.

Same names and meaning as in ``accelerate.utils``; the libraries themselves are not needed. Out of memory is
recognised by the backend, not by the words of a message.
"""

from __future__ import annotations

from devicekit_accelerate.memory import (
    clear_device_cache,
    find_executable_batch_size,
    get_max_memory,
    release_memory,
    should_reduce_batch_size,
)

__all__ = [
    "clear_device_cache",
    "find_executable_batch_size",
    "get_max_memory",
    "release_memory",
    "should_reduce_batch_size",
]
