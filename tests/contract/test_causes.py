"""What an error came from is read as Python reads it, and no object can mislead, fail or hang the reader."""

from __future__ import annotations

import itertools

import pytest

from devicekit.contract.causes import chain
from tests.odd_errors import ODD_ERRORS, deep, odd


def _raised(how: str) -> BaseException:
    try:
        try:
            raise OSError("below")
        except OSError as below:
            if how == "from another":
                raise ValueError("above") from KeyError("other")
            if how == "from none":
                raise ValueError("above") from None
            if how == "from it":
                raise ValueError("above") from below
            below.missing  # type: ignore[attr-defined]  # noqa: B018  # what raises while handling it
    except (ValueError, AttributeError) as error:
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("how", "below"),
    [("from it", [OSError]), ("plainly", [OSError]), ("from none", []), ("from another", [KeyError])],
)
def test_a_cause_goes_before_a_context_and_from_none_hides_it(how: str, below: list[type]) -> None:
    assert [type(one) for one in chain(_raised(how))][1:] == below


def test_a_chain_of_any_length_and_shape_ends() -> None:
    bottom = OSError()
    assert list(chain(deep(bottom, 10_000)))[-1] is bottom
    ring = [RuntimeError(str(number)) for number in range(5)]
    for one, (below, by_cause) in zip(
        ring, zip([*ring[1:], ring[0]], itertools.cycle([True, False])), strict=True
    ):
        setattr(one, "__cause__" if by_cause else "__context__", below)
    assert list(chain(ring[2])) == [*ring[2:], *ring[:2]]


@pytest.mark.parametrize("name", ODD_ERRORS)
def test_nothing_that_a_class_does_to_its_attributes_hides_what_is_below(name: str) -> None:
    bottom = OSError()
    for by_cause in (True, False):
        above = odd(name, below=bottom, by_cause=by_cause)
        assert [id(one) for one in chain(above)] == [id(above), id(bottom)]
