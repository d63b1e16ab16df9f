"""What endpoints read, as pydantic models whose checking costs no more than what was sent.

Where a thousand items are wrong, pydantic tells of a thousand errors. Here it stops at the first of a list, and
soon in an object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Annotated, Any, ClassVar, cast

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler, ValidationError, model_validator
from pydantic_core import CoreSchema, InitErrorDetails, PydanticCustomError, core_schema

MOST_OBJECTS = 8192
"""Objects that a list may have: they are models here, each of which takes a kilobyte."""

_NO_SCHEMAS = ("metadata", "serialization")
_AT_ONCE = 16  # entries of an object that are checked before it is looked whether any were wrong

Finite = Annotated[float, Field(allow_inf_nan=False)]
"""A number: neither infinite nor NaN."""

Label = Annotated[str, Field(max_length=1000)]
"""A name that somebody gives to something. It comes back in many answers, hence no longer than it has to be."""


def _bounded(node: object, owner: object) -> object:
    """A schema whose lists and objects stop being checked when something is wrong with them."""
    if isinstance(node, list | tuple):
        return type(node)(_bounded(one, owner) for one in node)
    if not isinstance(node, dict) or (node.get("type") == "model" and node.get("cls") is not owner):
        return node  # models within were seen to when they were made
    found = {key: value if key in _NO_SCHEMAS else _bounded(value, owner) for key, value in node.items()}
    kind = found.get("type")
    if kind in ("int", "float") and not found.get("strict"):
        return core_schema.no_info_before_validator_function(_no_truth, cast("CoreSchema", found))
    if kind in ("list", "set", "frozenset", "tuple") and "items_schema" in found:
        found["fail_fast"] = True
        if kind == "list" and _holds_objects(found["items_schema"]):
            found.setdefault("max_length", MOST_OBJECTS)
            return core_schema.no_info_wrap_validator_function(_each_once, cast("CoreSchema", found))
    elif kind == "dict":
        most = cast("int | None", found.pop("max_length", None))
        return core_schema.no_info_wrap_validator_function(_in_parts(most), cast("CoreSchema", found))
    return found


def _no_truth(given: object) -> object:
    """Python takes true for 1; whoever sends it to be counted with has mixed up two fields."""
    if isinstance(given, bool):
        raise PydanticCustomError("number", "Input should be a number, not a truth value")
    return given


def _holds_objects(schema: object) -> bool:
    return isinstance(schema, dict) and schema.get("type") in ("model", "definitions", "definition-ref")


def _each_once(given: object, handler: Callable[[object], Any]) -> object:
    """One model for all objects that are the same: an empty one takes two bytes, and its model a kilobyte."""
    if not isinstance(given, list) or len(given) <= _AT_ONCE or len(given) > MOST_OBJECTS:
        return handler(given)
    places: dict[str, int] = {}  # of each object, by what it says
    firsts: list[int] = []
    chosen: list[int] = []
    for index, one in enumerate(given):
        try:
            place = places.setdefault(repr(one), len(firsts))
        except RecursionError:  # nested as deeply as the parser lets pass
            return handler(given)
        if place == len(firsts):
            firsts.append(index)
        chosen.append(place)
    try:
        found = handler([given[index] for index in firsts])
    except ValidationError as error:
        raise _moved(error, firsts) from None
    return [found[place] for place in chosen]


def _moved(error: ValidationError, places: list[int]) -> ValidationError:
    """The same error, of the places that things had before."""
    lines: list[InitErrorDetails] = []
    for one in error.errors(include_url=False, include_context=False, include_input=False):
        at, *inner = one["loc"]
        location = (places[at] if isinstance(at, int) else at, *inner)
        lines.append({"type": PydanticCustomError("refused", one["msg"]), "loc": location, "input": None})
    return ValidationError.from_exception_data("list", lines)


def _in_parts(most: int | None) -> Callable[[object, Callable[[object], Any]], object]:
    def check(given: object, handler: Callable[[object], Any]) -> object:
        if not isinstance(given, dict) or len(given) <= _AT_ONCE:
            return handler(given)
        if most is not None and len(given) > most:
            raise PydanticCustomError("too_long", "Object should have at most {most} entries", {"most": most})
        entries = [*given.items()]
        found: dict[object, object] = {}
        for at in range(0, len(entries), _AT_ONCE):
            found.update(handler(dict(entries[at : at + _AT_ONCE])))
        return found

    return check


class Arguments(BaseModel):
    """What an endpoint reads.

    Unknown keys are let pass, as clients of other engines send more than we know, and the answer names them in a
    header; but those that would change the answer are refused (`devicekit.server.fields`). An explicit null is the
    same as a field that was not sent.
    """

    model_config = ConfigDict(extra="allow", protected_namespaces=())
    takes_anything: ClassVar[bool] = False  # what no field takes has a meaning all the same
    needs: ClassVar[Mapping[str, str]] = MappingProxyType({})
    """Fields that mean nothing without another one, and which: they are refused without it."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: object) -> object:
        if not isinstance(given, dict):
            return given
        fields = cls.model_fields
        return {
            name: value
            for name, value in given.items()
            if value is not None or name not in fields or fields[name].is_required()
        }

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        return cast("CoreSchema", _bounded(handler(source), source))
