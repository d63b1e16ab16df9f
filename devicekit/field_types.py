"""Whether the fields of a record hold what they are declared to hold, and what to say where they do not.

A float where a count belongs, or a text where a choice belongs, raises nothing where it is given: it is a loop
without an end, or the wrong branch. So what users make is held to its declarations, once and as a whole.
"""

from __future__ import annotations

import dataclasses
import enum
import inspect
import sys
import types
import typing
from collections.abc import Mapping
from numbers import Integral, Real
from typing import Annotated, Any, ClassVar

from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import shown

_UNIONS = (typing.Union, types.UnionType)
_NUMBERS: Mapping[object, type] = {int: Integral, float: Real}
_WORDS: Mapping[object, str] = {
    int: "a whole number",
    float: "a number",
    bool: "True or False",
    str: "a text",
    bytes: "bytes",
    types.NoneType: "None",
}
_HINTS: dict[type, Mapping[str, Any]] = {}


class WrongType(ConfigurationError, TypeError):
    """A setting is of another type than is declared. The message names it, the type and what was given."""


def require_types(record: object) -> None:
    """Raise `WrongType` unless every field of a dataclass is of its type."""
    if wrong := type_problems(record):
        raise WrongType(f"{type(record).__name__}: {'; '.join(wrong)}")


def type_problems(record: object, *only: str) -> list[str]:
    """What each field of a dataclass must be that is something else, and what it is; empty: all is well.

    A field whose declaration says nothing that can be checked may be anything.

    Args:
        only: the fields that are looked at; none: all.
    """
    hints = declarations(type(record))
    return [
        f"{name} must be {_words(hints[name])}, not {shown(getattr(record, name))}"
        for name in only or hints
        if not _fits(hints[name], getattr(record, name))
    ]


def declarations(kind: type) -> Mapping[str, Any]:
    """The types of a dataclass's fields, by name, read once. One that only a type checker can read is left out."""
    return _HINTS.get(kind) or _HINTS.setdefault(kind, _read(kind))


def _read(kind: type) -> Mapping[str, Any]:
    found: dict[str, Any] = {}
    for base in reversed(kind.__mro__):
        space = vars(sys.modules.get(base.__module__, typing))
        for name, hint in inspect.get_annotations(base).items():
            found.pop(name, None)
            try:
                found[name] = eval(hint, dict(space)) if isinstance(hint, str) else hint
            except Exception:  # a declaration is anybody's code: one that cannot be read here checks nothing
                continue
    fields = {one.name for one in dataclasses.fields(kind)}
    return {
        name: hint
        for name, hint in found.items()
        if name in fields and typing.get_origin(hint) is not ClassVar
    }


def _fits(hint: Any, value: object) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _fits(arguments[0], value)
    if origin in _UNIONS:
        return any(_fits(one, value) for one in arguments)
    if origin is tuple and isinstance(value, tuple):
        if arguments[-1] is Ellipsis:
            return all(_fits(arguments[0], one) for one in value)
        return len(value) == len(arguments) and all(map(_fits, arguments, value))
    if isinstance(origin, type) and issubclass(origin, Mapping) and isinstance(value, Mapping):
        return all(_fits(arguments[0], key) and _fits(arguments[1], one) for key, one in value.items())
    if hint in _NUMBERS:
        return isinstance(value, _NUMBERS[hint]) and not isinstance(value, bool)
    kind = origin or hint
    try:
        return kind is Any or not isinstance(kind, type) or isinstance(value, kind)
    except TypeError:  # protocols and typed dictionaries are no classes of what they describe
        return True


def _words(hint: Any) -> str:
    if hint in _WORDS:
        return _WORDS[hint]
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is Annotated:
        return _words(arguments[0])
    if origin in _UNIONS:
        return " or ".join(map(_words, arguments))
    if origin is tuple and arguments[-1] is Ellipsis:
        return f"a tuple, each of it {_words(arguments[0])}"
    if origin is tuple:
        return f"a tuple of {', '.join(map(_words, arguments))}"
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return f"a mapping of {_words(arguments[0])} to {_words(arguments[1])}"
    if isinstance(hint, enum.EnumMeta):
        members = ", ".join(f"{hint.__name__}.{name}" for name in hint.__members__)
        return f"a {hint.__name__} ({members})"
    return f"a {getattr(hint, '__name__', hint)}"
