"""Only the one refusal that an old torch deserves is left out of a run: any other one fails its test."""

from __future__ import annotations

import pytest

from devicekit.testing import CannotEnable
from tests.releases import NO_SIMULATOR, left_out

OLD = "the simulated accelerator needs torch >= 2.10, and this is 2.7.0+cu126: pip install -U torch"


def test_what_an_old_torch_cannot_do_has_a_name() -> None:
    assert left_out(CannotEnable(OLD), old=True) == NO_SIMULATOR


def test_a_torch_that_can_is_excused_from_nothing() -> None:
    assert left_out(CannotEnable(OLD), old=False) is None


@pytest.mark.parametrize(
    "error",
    [
        CannotEnable("torch has one free device type in a process, and 'acme' has taken it"),
        CannotEnable("the simulated accelerator needs torch >= 2.10, and this is 2.13.0"),
        RuntimeError(OLD),
    ],
    ids=str,
)
def test_every_other_refusal_is_a_failure(error: BaseException) -> None:
    assert left_out(error, old=True) is None
