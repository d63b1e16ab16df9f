"""Tools: what a chat may call, how a model is made to call one, and its calls read back out of its text.

A call is read by the tokenizer's own response template where it has one. Otherwise three common ways to write one
are known: JSON between ``<tool_call>`` and ``</tool_call>`` (Hermes, Qwen), a JSON list behind ``[TOOL_CALLS]``
(Mistral), and an output that is such JSON from end to end, behind ``<|python_tag|>`` or not (Llama 3). What cannot
be read is text like any other.
"""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from pydantic import Field

from devicekit.contract.text import shown
from devicekit.server.endpoints import Arguments
from devicekit.server.errors import BadRequest
from devicekit.server.tool_grammar import CLOSE, OPEN, forced
from devicekit.text import Grammar

_Name = Annotated[str, Field(min_length=1, max_length=256)]
_LIST, _PYTHON = "[TOOL_CALLS]", "<|python_tag|>"
_MARKS = (OPEN, _LIST, _PYTHON)


class Function(Arguments):
    """What a tool is called by, and with what."""

    name: _Name
    description: str | None = None
    parameters: dict[str, object] | None = None
    strict: bool | None = Field(
        default=None, description="arguments of its calls follow parameters, also where none has to be made"
    )


class Tool(Arguments):
    """One tool."""

    takes_anything = True  # it is the template's business

    type: Literal["function"]
    function: Function


class ChosenFunction(Arguments):
    """``function`` of a chosen tool."""

    name: str


class ChosenTool(Arguments):
    """``tool_choice`` that names a tool."""

    type: Literal["function"]
    function: ChosenFunction


ToolChoice = Literal["none", "auto", "required"] | ChosenTool


@dataclass(frozen=True, slots=True)
class Call:
    """A call that a model made. ``arguments`` is JSON."""

    name: str
    arguments: str
    id: str = field(default_factory=lambda: f"call_{uuid.uuid4().hex[:24]}")

    def document(self, index: int | None = None) -> dict[str, object]:
        """On the wire; with its ``index`` in a stream."""
        told: dict[str, object] = {} if index is None else {"index": index}
        function = {"name": self.name, "arguments": self.arguments}
        return {**told, "id": self.id, "type": "function", "function": function}


@dataclass(frozen=True, slots=True)
class ToolUse:
    """What a request may call, and whether it must."""

    tools: tuple[Tool, ...] = ()
    forced: tuple[str, ...] = ()  # one of these is called
    parallel: bool = True

    @property
    def strict(self) -> bool:
        """Whether a call that a model makes by itself has to follow a tool's schema."""
        return not self.forced and any(tool.function.strict for tool in self.tools)

    @classmethod
    def of(cls, tools: Sequence[Tool] | None, choice: ToolChoice | None, parallel: bool | None) -> ToolUse:
        """What the fields of a request come to.

        Raises:
            BadRequest: a tool is chosen that is not among them, or there is none to choose.
        """
        given = tuple(tools or ())
        if choice is None or choice in ("none", "auto"):
            return cls(() if choice == "none" else given, (), parallel is not False)
        names = tuple(tool.function.name for tool in given)
        if not given:
            raise BadRequest("tool_choice: there are no tools to choose from.")
        if isinstance(choice, ChosenTool):
            if choice.function.name not in names:
                raise BadRequest(
                    f"tool_choice: there is no tool {shown(choice.function.name)}, only {', '.join(names)}."
                )
            return cls(given, (choice.function.name,), False)
        return cls(given, names, parallel is not False)

    @property
    def marks(self) -> tuple[str, ...]:
        """What a call may begin with."""
        return (OPEN,) if self.strict else _MARKS

    def grammar(self) -> list[Grammar]:
        """What makes a model call one of the tools: a JSON list of calls. Empty if it need not."""
        if not self.forced:
            return []
        return [forced([tool for tool in self.tools if tool.function.name in self.forced], self.parallel)]

    def documents(self) -> list[dict[str, Any]] | None:
        """The tools as the chat template reads them."""
        return [tool.model_dump(exclude_none=True) for tool in self.tools] or None


@dataclass(slots=True)
class ToolReader:
    """Reads one output, as it comes, for calls.

    Args:
        tokenizer: whose response template, if it has one, reads the whole output.
    """

    use: ToolUse
    tokenizer: Any = None
    calls: list[Call] = field(default_factory=list)
    _text: str = ""  # not given out yet
    _began: bool = False  # something other than space was given out

    def feed(self, text: str) -> tuple[str, list[Call]]:
        """Text that is certainly none of a call, and calls that are complete."""
        if not self.use.tools:
            return text, []
        self._text += text
        if self.use.forced or self._has_template:
            return "", []
        content, calls = "", []
        while True:
            at, mark = self._next_mark()
            if mark != OPEN:
                break
            end = self._text.find(CLOSE, at)
            if end < 0:
                break
            content += self._text[:at]
            found = self._known(_load(self._text[at + len(OPEN) : end]))
            if found:
                calls += found
            else:
                content += self._text[at : end + len(CLOSE)]
            self._text = self._text[end + len(CLOSE) :]
        kept = self._kept()
        content, self._text = (
            content + self._text[: len(self._text) - kept],
            self._text[len(self._text) - kept :],
        )
        self._began = self._began or bool(content.strip())
        return content, self._take(calls)

    def end(self) -> tuple[str, list[Call]]:
        """What the rest is, now that nothing follows."""
        rest, self._text = self._text, ""
        if not rest:
            return "", []
        if self._has_template and not self.use.forced:
            content, calls = self._by_template(rest)
            return content, self._take(calls)
        at = min((found for mark in self.use.marks if (found := rest.find(mark)) >= 0), default=0)
        if self.use.strict and not rest.startswith(OPEN, at):
            return rest, []
        body = rest[at:]
        for mark in _MARKS:
            body = body.removeprefix(mark)
        calls = self._known(_load(body.removesuffix(CLOSE)))
        return (rest[:at], self._take(calls)) if calls else (rest, [])

    # -- Parts ------------------------------------------------------------------------------------------------

    @property
    def _has_template(self) -> bool:
        return getattr(self.tokenizer, "response_template", None) is not None

    def _by_template(self, text: str) -> tuple[str, list[Call]]:
        try:
            message = self.tokenizer.parse_response(text)
        except Exception:  # a template is a program, and the model may have written anything
            return text, []
        if not isinstance(message, Mapping):
            return text, []
        calls = self._known(message.get("tool_calls"))
        return str(message.get("content") or "") if calls else text, calls

    def _next_mark(self) -> tuple[int, str]:
        found = [(at, mark) for mark in self.use.marks if (at := self._text.find(mark)) >= 0]
        return min(found, default=(-1, ""))

    def _kept(self) -> int:
        """How much of the text may yet be a call, or the beginning of one."""
        text = self._text
        at, _ = self._next_mark()
        if at >= 0:
            return len(text) - at
        if not (self._began or self.use.strict) and text.lstrip()[:1] in ("{", "["):
            return len(text)
        return max(
            (
                size
                for mark in self.use.marks
                for size in range(1, min(len(mark), len(text) + 1))
                if text.endswith(mark[:size])
            ),
            default=0,
        )

    def _known(self, found: object) -> list[Call]:
        """Calls of tools that there are; none if anything else is among them."""
        calls: list[Call] = []
        names = {tool.function.name for tool in self.use.tools}
        for one in found if isinstance(found, list) else [found]:
            function = one.get("function", one) if isinstance(one, Mapping) else None
            if not isinstance(function, Mapping) or function.get("name") not in names:
                return []
            arguments = function.get("arguments", function.get("parameters", {}))
            if not isinstance(arguments, str):
                arguments = json.dumps(arguments, ensure_ascii=False)
            calls.append(Call(str(function["name"]), arguments))
        return calls

    def _take(self, calls: list[Call]) -> list[Call]:
        if not self.use.parallel:
            calls = calls[: max(0, 1 - len(self.calls))]
        self.calls += calls
        return calls


def _load(text: str) -> object:
    try:
        return json.loads(text)
    except (ValueError, RecursionError):
        return None


def marks_hidden(vocabulary: Mapping[str, int], special: Sequence[int]) -> bool:
    """Whether a tokenizer's special tokens are among what calls are recognised by."""
    return any(vocabulary.get(mark) in special for mark in (*_MARKS, CLOSE))
