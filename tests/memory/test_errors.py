from __future__ import annotations

import pickle

import pytest

from devicekit.contract.errors import DeviceKitError
from devicekit.memory.errors import (
    CacheInUse,
    DoubleFree,
    ForeignPage,
    PagesInUse,
    PoolError,
    StaleNode,
    UnknownPolicy,
)


@pytest.mark.parametrize(
    "error",
    [
        ForeignPage((1, 2), 10),
        DoubleFree(tuple(range(20)), 100),
        DoubleFree((), 100),
        PagesInUse(3, 20, 10),
        CacheInUse(4),
        StaleNode("gone"),
        UnknownPolicy("random", ("lru", "lfu")),
    ],
    ids=lambda error: type(error).__name__,
)
def test_errors_belong_to_one_tree_and_cross_process_boundaries(error: PoolError) -> None:
    assert isinstance(error, DeviceKitError)
    copy = pickle.loads(pickle.dumps(error))
    assert type(copy) is type(error)
    assert str(copy) == str(error)
    assert vars(copy) == vars(error)


def test_a_long_list_of_pages_is_shortened_in_the_message_only() -> None:
    error = DoubleFree(tuple(range(1, 21)), 100)
    assert "and 12 more" in str(error)
    assert len(error.pages) == 20
