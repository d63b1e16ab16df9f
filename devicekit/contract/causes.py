"""What an error came from, for those who judge errors, read so that no object can mislead, stop or hang them."""

from __future__ import annotations

from collections.abc import Iterator

# The interpreter's own fields: a class may put properties in front of them, which may raise or answer anything.
_cause = vars(BaseException)["__cause__"].__get__
_context = vars(BaseException)["__context__"].__get__
_suppressed = vars(BaseException)["__suppress_context__"].__get__


def chain(error: BaseException) -> Iterator[BaseException]:
    """The error and what it came from, outermost first, as Python prints it.

    Its cause if it has one, else its context, unless ``raise ... from None`` took that back. Where the chain bites
    its tail it ends.
    """
    seen: set[int] = set()
    one: BaseException | None = error
    while one is not None and id(one) not in seen:
        seen.add(id(one))
        yield one
        below = _cause(one)
        # Not by truth: an exception may have a length, or no truth at all.
        one = below if below is not None or _suppressed(one) else _context(one)
