"""Constraints on an output as clients send them, in all their spellings, and the one grammar that they mean."""

from __future__ import annotations

import json
from typing import Annotated, Literal

from pydantic import Field

from devicekit.documents import each_once
from devicekit.server.endpoints import Arguments
from devicekit.server.errors import BadRequest
from devicekit.text.grammar import Grammar, GrammarKind

_Choices = Annotated[list[str], Field(min_length=1, max_length=10_000)]


class StructuredOutputs(Arguments):
    """``structured_outputs``, as one client spells it. Exactly one of its fields."""

    json_: str | dict[str, object] | bool | None = Field(default=None, alias="json")
    regex: str | None = None
    choice: _Choices | None = None
    grammar_: str | None = Field(default=None, alias="grammar")
    json_object: bool | None = None


class JsonSchema(Arguments):
    """``json_schema`` of a response format."""

    name: str | None = None
    description: str | None = None
    strict: bool | None = None
    schema_: dict[str, object] | bool | None = Field(default=None, alias="schema")


class ResponseFormat(Arguments):
    """``response_format``."""

    type: Literal["text", "json_object", "json_schema"]
    json_schema: JsonSchema | None = None


class GrammarArguments(Arguments):
    """Fields that constrain an output. At most one of them may be given."""

    json_schema: str | dict[str, object] | None = Field(default=None, description="the output is such JSON")
    regex: str | None = Field(default=None, description="the output matches this from end to end")
    ebnf: str | None = Field(default=None, description="the output is derived from this grammar's root")
    guided_json: str | dict[str, object] | None = Field(default=None, description="as json_schema")
    guided_regex: str | None = Field(default=None, description="as regex")
    guided_grammar: str | None = Field(default=None, description="as ebnf")
    guided_choice: _Choices | None = Field(default=None, description="the output is one of these")
    structured_outputs: StructuredOutputs | None = None

    def grammar(self) -> Grammar | None:
        """The grammar that is asked for.

        Raises:
            BadRequest: more than one is, or a schema is no JSON.
        """
        return only([*self._asked()])

    def _asked(self) -> list[Grammar]:
        nested = self.structured_outputs or StructuredOutputs()
        found = [json_grammar(one) for one in (self.json_schema, self.guided_json) if one not in (None, "")]
        if nested.json_ not in (None, False):
            found.append(json_grammar({} if nested.json_ is True else nested.json_))
        if nested.json_object:
            found.append(JSON_OBJECT)
        expressions = (self.regex, self.guided_regex, nested.regex)
        found += [Grammar(GrammarKind.REGEX, one) for one in expressions if one]
        rules = (self.ebnf, self.guided_grammar, nested.grammar_)
        found += [Grammar(GrammarKind.EBNF, one) for one in rules if one]
        found += [choice_grammar(one) for one in (self.guided_choice, nested.choice) if one]
        return found


JSON_OBJECT = Grammar(GrammarKind.JSON_SCHEMA, '{"type": "object"}')


def response_grammar(wanted: ResponseFormat | None) -> Grammar | None:
    """The grammar of a response format.

    Raises:
        BadRequest: it is a json_schema without one.
    """
    if wanted is None or wanted.type == "text":
        return None
    if wanted.type == "json_object":
        return JSON_OBJECT
    if wanted.json_schema is None or wanted.json_schema.schema_ is None:
        raise BadRequest("response_format.json_schema.schema: it is missing, and type is json_schema.")
    schema = wanted.json_schema.schema_
    return json_grammar({} if schema is True else schema)


def json_grammar(schema: object) -> Grammar:
    """The grammar of a JSON schema, given as an object or as its text.

    Raises:
        BadRequest: it is no JSON object.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema, object_pairs_hook=each_once)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"json_schema is not JSON: {str(error)[:200]}") from error
    if not isinstance(schema, dict):
        raise BadRequest("json_schema must be a JSON object.")
    # As short as it can be: its length is bounded.
    return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema, separators=(",", ":"), ensure_ascii=False))


def choice_grammar(choices: list[str]) -> Grammar:
    """One of these texts. All are one terminal: what a parser would have to keep of each a lexer need not."""
    quoted = [json.dumps(choice, ensure_ascii=False) for choice in choices]
    return Grammar(GrammarKind.CHOICE, f"start: CHOICE\nCHOICE: {' | '.join(quoted)}")


def only(found: list[Grammar]) -> Grammar | None:
    """The one grammar of a list of at most one.

    Raises:
        BadRequest: there are more.
    """
    if len(found) > 1:
        kinds = ", ".join(one.kind.value for one in found)
        raise BadRequest(f"An output can be constrained in one way only, and this asks for {kinds}.")
    return found[0] if found else None
