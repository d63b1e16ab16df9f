"""Has the kernel hold what a process holds in large pages, so that a fork copies hundreds of entries, not 50,000.

It changes nothing that a program sees of its memory, and where the kernel cannot do it (Linux before 6.1, other
systems) forks take the time that they take.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Iterator
from pathlib import Path

__all__ = ["hold_in_large_pages"]

_COLLAPSE = 25  # MADV_COLLAPSE of madvise(2)
_LARGE = 2 << 20  # bytes


def hold_in_large_pages() -> None:
    """Collapse what this process has written to so far."""
    if not sys.platform.startswith("linux"):
        return
    try:
        advise = ctypes.CDLL(None).madvise
        ranges = list(_private())
    except (OSError, AttributeError):
        return
    for start, end in ranges:
        advise(ctypes.c_void_p(start), ctypes.c_size_t(end - start), _COLLAPSE)


def _private() -> Iterator[tuple[int, int]]:
    """The parts of the heap and of unnamed memory that large pages can hold."""
    for line in Path("/proc/self/maps").read_text(encoding="ascii", errors="replace").splitlines():
        addresses, permissions, _, _, _, *name = line.split(maxsplit=5)
        if not permissions.startswith("rw-p") or name not in ([], ["[heap]"]):
            continue
        first, last = (int(one, 16) for one in addresses.split("-"))
        start, end = -(-first // _LARGE) * _LARGE, last // _LARGE * _LARGE
        if start < end:
            yield start, end
