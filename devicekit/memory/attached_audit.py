"""The conservation audit of attachments: every id is in one place, and every pin has a holder."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from devicekit.memory.attachments import Attachments, Int32
from devicekit.memory.audit import Conservation
from devicekit.memory.pages import PagePool


def audit_attached(attached: Attachments, pages: PagePool, held: Sequence[Int32] = ()) -> Conservation:
    """Account for every id that is attached, or may be attached, to ``pages``.

    Pinned ids count as owned and idle ones as evictable. An id on a free page, or pinned more often than by the
    holders given, is leaked; one that is pinned less often is in two places.

    Args:
        held: the pages whose attachments each holder has pinned.
    """
    expected = np.zeros_like(attached.pins)
    for one in held:
        np.add.at(expected, one, 1)
    bearing = np.flatnonzero(attached.of)
    ids, counts = np.unique(
        np.concatenate((attached.ids.free_pages(), attached.of[bearing])), return_counts=True
    )
    total = attached.total
    lost = np.setdiff1d(np.arange(1, total + 1), ids)
    free = pages.free_pages()
    unreachable = attached.of[free[attached.of[free] != 0]]
    more, fewer = attached.pins > expected, attached.pins < expected
    doubled = ids[(counts > 1) | (ids < 1) | (ids > total)]
    return Conservation(
        available=attached.ids.available,
        evictable=attached.idle,
        protected=0,
        owned=int(np.count_nonzero(expected)),
        total=total,
        leaked=_sorted(lost, unreachable, attached.of[more]),
        doubled=_sorted(doubled, attached.of[fewer]),
        tree=None,
    )


def _sorted(*found: np.ndarray[tuple[int], np.dtype[np.signedinteger]]) -> tuple[int, ...]:
    return tuple(np.unique(np.concatenate(found)).tolist())
