"""What makes a model call tools as they are declared: by force, or only if it calls one at all."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING

from devicekit.text import Grammar, GrammarKind

if TYPE_CHECKING:
    from devicekit.server.tools import Tool

OPEN, CLOSE = "<tool_call>", "</tool_call>"


def forced(tools: Sequence[Tool], parallel: bool) -> Grammar:
    """An output that is a JSON list of calls of these tools, at least one."""
    most = {} if parallel else {"maxItems": 1}
    calls = _calls(tools, "parameters", "#/items/anyOf")
    schema = {"type": "array", "minItems": 1, "items": {"anyOf": calls}, **most}
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema))


def tagged(tools: Sequence[Tool], token: bool) -> Grammar:
    """Any text, in which whatever stands behind a mark is a call of one of these tools.

    The arguments of those that are strict follow their schema.

    Args:
        token: the mark is a token of its own, which is never made of others.
    """
    calls = _calls(tools, "arguments", "#/anyOf", only_strict=True)
    mark, end = (OPEN, CLOSE) if token else (json.dumps(OPEN), json.dumps(CLOSE))
    lines = (
        "%llguidance {}",
        "start: (begin WS call WS end)* REST",
        f"begin: REST {mark}" if token else f"begin[lazy]: ANYTHING {mark}",
        f"call: %json {json.dumps({'anyOf': calls})}",
        f"end: {end}",
        "ANYTHING: /(.|\\n)*/",
        f"REST: ANYTHING & ~/(.|\\n)*{OPEN}(.|\\n)*/",
        "WS: /[ \\t\\r\\n]{0,12}/",  # not for ever
    )
    return Grammar(GrammarKind.LARK, "\n".join(lines))


def _calls(tools: Sequence[Tool], key: str, place: str, only_strict: bool = False) -> list[dict[str, object]]:
    """Schemas of calls; ``place``: where their list stands, as a reference within a schema says it."""
    return [
        _call(
            tool,
            key,
            tool.function.parameters if tool.function.strict or not only_strict else None,
            f"{place}/{at}",
        )
        for at, tool in enumerate(tools)
    ]


def _call(tool: Tool, key: str, schema: dict[str, object] | None, place: str) -> dict[str, object]:
    moved = _moved(schema or {"type": "object"}, f"{place}/properties/{key}")
    return {
        "type": "object",
        "properties": {"name": {"const": tool.function.name}, key: moved},
        "required": ["name", key],
        "additionalProperties": False,
    }


def _moved(schema: object, place: str) -> object:
    """A schema whose references to its own parts hold where it stands now."""
    if isinstance(schema, list):
        return [_moved(one, place) for one in schema]
    if not isinstance(schema, dict):
        return schema
    return {
        name: f"{place}{one[1:]}"
        if name == "$ref" and isinstance(one, str) and (one == "#" or one.startswith("#/"))
        else _moved(one, place)
        for name, one in schema.items()
    }
