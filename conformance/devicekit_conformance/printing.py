"""What an answer holds, as something that can be compared once the answer may have changed."""

from __future__ import annotations

import dataclasses

__all__ = ["printed"]

_MOST = 1 << 20  # bytes of a tensor that are read


def printed(answer: object) -> object:
    """The contents of a record, a list or a host tensor; ``None`` for what may change, as a stream does."""
    if dataclasses.is_dataclass(answer) and not isinstance(answer, type):
        return [printed(getattr(answer, one.name)) for one in dataclasses.fields(answer)]
    if isinstance(answer, list | tuple | dict | frozenset | str | int | float | bool):
        return repr(answer)
    if isinstance(answer, BaseException):
        chain = (answer.__cause__, answer.__context__, answer.__traceback__)
        return [*map(id, answer.args), *map(id, chain), *vars(answer)]
    if getattr(getattr(answer, "device", None), "type", "") == "cpu" and hasattr(answer, "untyped_storage"):
        small = answer.nbytes <= _MOST  # type: ignore[attr-defined]  # a tensor, and torch may not be imported
        return (tuple(answer.shape), answer.reshape(-1).tolist()) if small else None  # type: ignore[attr-defined]
    return None
