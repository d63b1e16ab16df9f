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
        schemas: dict[str, object] = {"json_schema": self.json_schema, "guided_json": self.guided_json}
        found = [json_grammar(one, name) for name, one in schemas.items() if one not in (None, "")]
        if nested.json_ not in (None, False):
            found.append(json_grammar({} if nested.json_ is True else nested.json_, f"{_NESTED}.json"))
        if nested.json_object:
            found.append(JSON_OBJECT)
        expressions = {
            "regex": self.regex,
            "guided_regex": self.guided_regex,
            f"{_NESTED}.regex": nested.regex,
        }
        found += [Grammar(GrammarKind.REGEX, one, name) for name, one in expressions.items() if one]
        rules = {
            "ebnf": self.ebnf,
            "guided_grammar": self.guided_grammar,
            f"{_NESTED}.grammar": nested.grammar_,
        }
        found += [Grammar(GrammarKind.EBNF, one, name) for name, one in rules.items() if one]
        choices = {"guided_choice": self.guided_choice, f"{_NESTED}.choice": nested.choice}
        found += [choice_grammar(one, name) for name, one in choices.items() if one]
        return found


_NESTED = "structured_outputs"
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
    return json_grammar({} if schema is True else schema, "response_format.json_schema.schema")


def json_grammar(schema: object, field: str) -> Grammar:
    """The grammar of a JSON schema, given as an object or as its text in a field of this name.

    Raises:
        BadRequest: it is no JSON object.
    """
    if isinstance(schema, str):
        try:
            schema = json.loads(schema, object_pairs_hook=each_once)
        except (ValueError, RecursionError) as error:
            raise BadRequest(f"{field} is not JSON: {str(error)[:200]}") from error
    if not isinstance(schema, dict):
        raise BadRequest(f"{field} must be a JSON object.")
    # As short as it can be: its length is bounded.
    text = json.dumps(schema, separators=(",", ":"), ensure_ascii=False)
    return Grammar(GrammarKind.JSON_SCHEMA, text, field)


def choice_grammar(choices: list[str], field: str) -> Grammar:
    """One of these texts. All are one terminal: what a parser would have to keep of each a lexer need not."""
    quoted = [json.dumps(choice, ensure_ascii=False) for choice in choices]
    return Grammar(GrammarKind.CHOICE, f"start: CHOICE\nCHOICE: {' | '.join(quoted)}", field)


def only(found: list[Grammar]) -> Grammar | None:
    """The one grammar of a list of at most one.

    Raises:
        BadRequest: there are more.
    """
    if len(found) > 1:
        kinds = ", ".join(one.name for one in found)
        raise BadRequest(f"An output can be constrained in one way only, and this asks for {kinds}.")
    return found[0] if found else None
