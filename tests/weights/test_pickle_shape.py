"""What a pickle would build is bounded before any of it is built."""

from __future__ import annotations

import pickle
import time
from itertools import pairwise

import pytest

from devicekit.scheduling.errors import InvalidOperation
from devicekit.weights.pickled import SentFailure, read_message, read_pickled


def _laughs(levels: int) -> bytes:
    """Each level a tuple of the one below, twice."""
    value: object = ("x", "x")
    for _ in range(levels):
        value = (value, value)
    return pickle.dumps(value, protocol=4)


def _filled_afterwards(levels: int) -> bytes:
    """Lists that hold the next one twice, put into each other while they are empty."""
    lists: list[list[object]] = [[] for _ in range(levels)]
    for upper, lower in pairwise(lists):
        upper += [lower, lower]
    return pickle.dumps([*lists], protocol=4)


def _deep(levels: int) -> bytes:
    value: list[object] = []
    for _ in range(levels):
        value = [value]
    return pickle.dumps(value, protocol=4)


def _in_itself() -> bytes:
    value: list[object] = []
    value.append(value)
    return pickle.dumps(value, protocol=4)


@pytest.mark.parametrize(
    "content",
    [
        _laughs(40),
        _laughs(90),
        _filled_afterwards(60),
        _deep(200),
        _in_itself(),
        b"\x80\x04" + b"N" * 4_000_001 + b".",
        b"\x80\x04Nr\xff\xff\xff\x7f.",
        b"\x80\x04a.",
        b"\x80\x04\x87.",
        b"\x80\x04h\x07.",
        b"\x80\x04t.",
        b"\x80\x04",
        b"",
    ],
    ids=lambda one: str(len(one)),
)
@pytest.mark.parametrize("read", [read_pickled, read_message])
def test_what_costs_more_than_it_weighs_is_refused(read: object, content: bytes) -> None:
    began = time.process_time()
    with pytest.raises(InvalidOperation, match="pickle"):
        read(content)  # type: ignore[operator]
    assert time.process_time() - began < 0.5 + 10e-6 * len(content)


@pytest.mark.parametrize("value", [None, [1, "a", (2, 3)], {"a": [(), {}]}, [("x",)] * 10_000, [[]] * 1000])
def test_what_is_of_a_size_is_read(value: object) -> None:
    assert read_message(pickle.dumps(value, protocol=4)) == value


def test_of_a_senders_error_not_more_is_told_than_anybody_reads() -> None:
    found = read_message(pickle.dumps(RuntimeError("x" * 1_000_000, ("y",) * 1000), protocol=4))
    assert isinstance(found, SentFailure)
    assert found.message.startswith("RuntimeError: xxx")
    assert len(found.message) <= 2000
