"""Every place of an endpoint's arguments, as its schema names them, and values at the edges of what each takes."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

Schema = Mapping[str, Any]

_DEEPEST = 5  # models in one another
_LOWER = {"minimum": 0, "exclusiveMinimum": 1}  # and how much above it the first is that is allowed
_UPPER = {"maximum": 0, "exclusiveMaximum": 1}
_LENGTHS = {"string": "Length", "array": "Items", "object": "Properties"}
_LONGEST = 20_000  # things, of what is sent to try a length


@dataclass(frozen=True)
class Raw:
    """A value that Python cannot write: as it stands in the body."""

    text: str


# Sent to every field, whatever it takes.
ODD: tuple[object, ...] = (
    *(
        None,
        True,
        False,
        -1,
        0,
        1,
        2**31,
        2**32,
        2**63,
        2**64,
        -(2**63) - 1,
        10**400,
        -0.0,
        0.5,
        1e308,
        -1e308,
    ),
    *(5e-324, Raw("NaN"), Raw("Infinity"), Raw("-Infinity"), Raw("1e999"), Raw("-1e999"), Raw("-0")),
    *("", " ", "7", "-1", "1e308", "NaN", "true", "\0", "a\0b", "\U0001f600", "\u202e\u2028", "x" * 2000),
    *(Raw('"\\ud800"'), Raw('"\\udc00\\ud800"'), [], [[]], [[[]]], [None], [1], ["a"], [True], [0.5], {}),
    *({"": {}}, {"a": None}, {"\0": 1}, [{}], [[1], ["a"]], [2**63], [1e308], [Raw("1e999")]),
)


@dataclass(frozen=True)
class Place:
    """A field, or a part of one.

    Args:
        names: from the outermost field to this one.
        schemas: each form that it may have.
        put: makes the arguments that hold a value here.
    """

    names: tuple[str, ...]
    schemas: tuple[Schema, ...]
    put: Callable[[object], dict[str, object]] = field(compare=False)

    def __str__(self) -> str:
        return ".".join(self.names)

    def values(self) -> Iterator[tuple[object, str]]:
        """What to send, and the bound that it breaks in every form: empty if it breaks none, or others too."""
        for one in ODD:
            yield one, ""
        alone = [one for one in self.schemas if one.get("type") != "null"]
        for schema in alone:
            for value, broken in _at_bounds(schema):
                yield value, broken if len(alone) == 1 else ""


def body_of(document: object) -> bytes:
    """A document as JSON, with raw values as they stand."""
    raws: list[str] = []

    def marked(value: object) -> object:
        if isinstance(value, Raw):
            raws.append(value.text)
            return f"<raw {len(raws) - 1}>"
        if isinstance(value, dict):
            return {name: marked(one) for name, one in value.items()}
        if isinstance(value, list):
            return [marked(one) for one in value]
        return value

    text = json.dumps(marked(document), ensure_ascii=False)
    for index, raw in enumerate(raws):
        text = text.replace(f'"<raw {index}>"', raw)
    return text.encode()


def places(schema: Schema, beside: Mapping[str, object]) -> Iterator[Place]:
    """Every field of an object, and every part of each, however deep.

    Args:
        beside: what is sent with whatever is tried, where it is not that very field.
    """
    yield from _within(schema, schema.get("$defs", {}), (), lambda value: {**beside, **value}, 0)


def _within(
    schema: Schema,
    models: Mapping[str, Schema],
    names: tuple[str, ...],
    around: Callable[[dict[str, object]], dict[str, object]],
    depth: int,
) -> Iterator[Place]:
    properties: Mapping[str, Schema] = schema.get("properties", {})
    needed = {name: example(properties[name], models) for name in schema.get("required", ())}
    for name, one in properties.items():

        def put(value: object, name: str = name) -> dict[str, object]:
            return around({**needed, name: value})

        yield from _parts(one, models, (*names, name), put, depth)


def _parts(
    schema: Schema,
    models: Mapping[str, Schema],
    names: tuple[str, ...],
    put: Callable[[object], dict[str, object]],
    depth: int,
) -> Iterator[Place]:
    forms = tuple(_forms(schema, models))
    yield Place(names, forms, put)
    if depth == _DEEPEST:
        return
    for form in forms:
        if "properties" in form:
            yield from _within(form, models, names, put, depth + 1)
        if form.get("type") == "array" and "items" in form:
            yield from _parts(form["items"], models, names, lambda value: put([value]), depth + 1)
        inner = form.get("additionalProperties")
        if isinstance(inner, Mapping):
            yield from _parts(inner, models, names, lambda value: put({"a": value}), depth + 1)
        for inner in form.get("patternProperties", {}).values():
            yield from _parts(inner, models, names, lambda value: put({"7": value}), depth + 1)


def _forms(schema: Schema, models: Mapping[str, Schema]) -> Iterator[Schema]:
    if "$ref" in schema:
        yield from _forms(models[schema["$ref"].rpartition("/")[2]], models)
    elif "anyOf" in schema or "oneOf" in schema:
        for one in schema.get("anyOf") or schema["oneOf"]:
            yield from _forms(one, models)
    else:
        yield schema


def example(schema: Schema, models: Mapping[str, Schema]) -> object:
    """Something that a schema allows."""
    form = next(_forms(schema, models))
    if "enum" in form or "const" in form:
        return form.get("const", next(iter(form.get("enum", [None]))))
    match form.get("type"):
        case "string":
            return "a" * max(1, form.get("minLength", 1))
        case "integer" | "number":
            return form.get("minimum", form.get("exclusiveMinimum", 0) + 1)
        case "boolean":
            return True
        case "array":
            return [example(form["items"], models)] * max(1, form.get("minItems", 1))
    return {name: example(form["properties"][name], models) for name in form.get("required", ())}


def _at_bounds(schema: Schema) -> Iterator[tuple[object, str]]:
    kind = schema.get("type")
    if kind in ("integer", "number"):
        step = 1 if kind == "integer" else 0.5
        for bounds, sign in ((_LOWER, 1), (_UPPER, -1)):
            for name, beyond in bounds.items():
                if name in schema:
                    bound = schema[name]
                    yield bound - sign * step, f"{bound:g}" if kind == "number" else str(bound)
                    yield bound, (f"{bound:g}" if kind == "number" else str(bound)) if beyond else ""
                    yield bound + sign * step, ""
    elif kind in _LENGTHS:
        make = {
            "string": lambda count: "\U0001f600" * count,
            "array": lambda count: [_item(schema)] * count,
            "object": lambda count: {str(index): 1 for index in range(count)},
        }[kind]
        least, most = (schema.get(f"{end}{_LENGTHS[kind]}") for end in ("min", "max"))
        if least:
            yield make(least - 1), str(least)
            yield make(least), ""
        if most is not None and most <= _LONGEST:
            yield make(most), ""
            yield make(most + 1), str(most)


def _item(schema: Schema) -> object:
    kind = schema.get("items", {}).get("type")
    return {"string": "a", "integer": 1, "number": 1, "array": [1]}.get(kind, {})
