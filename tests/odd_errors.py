"""Exceptions whose classes do odd things: whoever judges errors meets them all."""

from __future__ import annotations

from typing import Any, NoReturn

_RAISED = (ValueError, AttributeError, RecursionError, OSError, StopIteration)
_METHODS = (
    "__str__",
    "__repr__",
    "__bool__",
    "__len__",
    "__hash__",
    "__eq__",
    "__format__",
    "__getattribute__",
)
_FIELDS = ("__cause__", "__context__", "__suppress_context__", "__class__", "__traceback__", "__dict__", "args",
           "error_code")  # fmt: skip


class _OddText(str):
    def __getitem__(self, key: object) -> Any:
        return 5


_ANSWERS: dict[str, dict[str, Any]] = {
    "no truth": {"__bool__": lambda self: False},
    "length 0": {"__len__": lambda self: 0},
    "text that cannot be cut": {"__str__": lambda self: _OddText("out of memory")},
    "no text at all": {"__str__": lambda self: None},
    "a cause that is none": {"__cause__": property(lambda self: 3)},
    "a context that is itself": {"__context__": property(lambda self: self)},
    "a code that is none": {"error_code": property(lambda self: [700])},
    "another class": {"__class__": property(lambda self: int)},
    "arguments that are none": {"args": property(lambda self: None)},
}
ODD_ERRORS = (
    *_ANSWERS,
    *(f"{name} raises {kind.__name__}" for name in (*_METHODS, *_FIELDS) for kind in _RAISED),
)
"""By what is odd in them."""


def odd(
    name: str,
    base: type[BaseException] = RuntimeError,
    below: BaseException | None = None,
    by_cause: bool = True,
) -> BaseException:
    """An error of a class of that oddity, raised from, or while handling, the one ``below``."""
    if name in _ANSWERS:
        body = _ANSWERS[name]
    else:
        attribute, _, kind = name.split(" ")
        wanted = next(one for one in _RAISED if one.__name__ == kind)

        def fail(self: object, *_: object) -> NoReturn:
            raise wanted(f"{attribute} cannot be asked")

        body = {attribute: fail if attribute in _METHODS else property(fail)}
    error: BaseException = type("Odd", (base,), dict(body))("out of luck")
    if below is not None:
        # As the interpreter sets them, past whatever the class has.
        vars(BaseException)["__cause__" if by_cause else "__context__"].__set__(error, below)
    return error


def deep(bottom: BaseException, layers: int) -> BaseException:
    """An error with so many above it, by cause and context in turn."""
    for number in range(layers):
        above = RuntimeError(f"layer {number}")
        if number % 2:
            above.__cause__ = bottom
        else:
            above.__context__ = bottom
        bottom = above
    return bottom
