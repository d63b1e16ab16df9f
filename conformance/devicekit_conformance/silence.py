"""What a hook may answer for a device that does not exist, where it does not raise."""

from __future__ import annotations

import dataclasses

from devicekit_conformance import frozen_contract

__all__ = ["says_nothing"]


def says_nothing(hook: str, answer: object) -> bool:
    """Whether ``answer`` of an observing hook says that nothing is known: ``None``, nothing, or no number."""
    if frozen_contract.hook(hook).missing is not frozen_contract.Missing.ANSWER_UNKNOWN:
        return False
    if dataclasses.is_dataclass(answer):
        values = [getattr(answer, one.name) for one in dataclasses.fields(answer)]
        return not [value for value in values if isinstance(value, int | float)]
    return answer is None or answer in ([], ())
