"""Errors go from rank to rank, and arrive as what they were."""

from __future__ import annotations

import pickle

import pytest

from devicekit.contract.records import ErrorKind
from devicekit.scheduling.errors import PassFailed, RankLost, RanksFailed


@pytest.mark.parametrize(
    "error",
    [
        RanksFailed({1: "no room", 3: "no file"}),
        RankLost("rank 2 has ended", (2,)),
        RankLost("somebody went their own way"),
        PassFailed("out of memory", ErrorKind.OUT_OF_MEMORY),
        PassFailed("unknown", None),
    ],
    ids=lambda one: type(one).__name__,
)
def test_an_error_arrives_as_it_was_sent(error: Exception) -> None:
    arrived = pickle.loads(pickle.dumps(error))
    assert type(arrived) is type(error)
    assert (str(arrived), vars(arrived)) == (str(error), vars(error))
