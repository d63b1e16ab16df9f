"""Grammars that somebody else wrote: however long and deep, an answer comes back, and the process lives."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models

from devicekit.text import Grammar, GrammarCompiler, GrammarKind, GrammarRefused
from devicekit.text.deep_stack import with_deep_stack

MOST = {GrammarKind.JSON_SCHEMA: 64 << 10, GrammarKind.REGEX: 16 << 10, GrammarKind.EBNF: 16 << 10}


class Fast:
    """As much of a tokenizer of transformers as a compiler needs: one token for each byte."""

    def __init__(self) -> None:
        tokens = {f"<0x{byte:02X}>": byte for byte in range(256)}
        self.backend_tokenizer = Tokenizer(models.BPE(tokens, [], byte_fallback=True))
        self.backend_tokenizer.decoder = decoders.ByteFallback()


def compiler() -> GrammarCompiler:
    return GrammarCompiler(Fast(), 256, [0])


def _references(wrap: Callable[[object], object]) -> Callable[[int], Grammar]:
    """A schema of definitions each of which refers to the next one."""

    def made(depth: int) -> Grammar:
        found = {f"{at:x}": wrap({"$ref": f"#/$defs/{at + 1:x}"}) for at in range(depth)}
        schema = {"$defs": {**found, f"{depth:x}": {"type": "string"}}, "$ref": "#/$defs/0"}
        return Grammar(GrammarKind.JSON_SCHEMA, json.dumps(schema, separators=(",", ":")))

    return made


def _rules(first: str, rule: str, last: str) -> Callable[[int], Grammar]:
    def made(depth: int) -> Grammar:
        lines = [first, *(rule.format(at, at + 1) for at in range(depth)), last.format(depth)]
        return Grammar(GrammarKind.EBNF, "\n".join(lines))

    return made


def _nested(kind: GrammarKind, before: str, open_: str, close: str) -> Callable[[int], Grammar]:
    return lambda depth: Grammar(kind, f"{before}{open_ * depth}a{close * depth}")


DEEP: dict[str, Callable[[int], Grammar]] = {
    "references": _references(lambda one: one),
    "lists": _references(lambda one: {"items": one}),
    "objects": _references(lambda one: {"properties": {"a": one}, "required": ["a"]}),
    "both": _references(lambda one: {"allOf": [one, {}]}),
    "either": _references(lambda one: {"anyOf": [one, {"type": "null"}]}),
    "rules": _rules("root ::= r0", "r{0} ::= r{1}", 'r{0} ::= "c"'),
    "Lark's rules": _rules("start: r0", 'r{0}: "a" r{1} | "b"', 'r{0}: "c"'),
    "Lark's terminals": _rules("start: R0", 'R{0}: "a" R{1} | "b"', 'R{0}: "c"'),
    "brackets": _nested(GrammarKind.REGEX, "", "(", ")"),
    "repeated brackets": _nested(GrammarKind.REGEX, "", "(a", ")*"),
    "brackets of a rule": _nested(GrammarKind.EBNF, "start: ", "(", ")"),
}


def longest(make: Callable[[int], Grammar]) -> Grammar:
    """The deepest grammar of a kind that is not too long."""
    low, high = 1, 1 << 16
    while low < high:
        middle = (low + high + 1) // 2
        one = make(middle)
        low, high = (middle, high) if len(one.source) <= MOST[one.kind] else (low, middle - 1)
    return make(low)


def follow(make: Callable[[int], Grammar]) -> str:
    """Compile it, and go some tokens into it."""
    try:
        matcher = compiler().matcher(longest(make))
        for token in b'{"a":{"a"':
            matcher.advance(token)
    except GrammarRefused as refused:
        return str(refused)
    return "followed"


def test_no_grammar_is_too_deep_for_the_process() -> None:
    """In another one: the stack of a library that overflows ends it without a word."""
    source = (
        "from tests.text.test_grammars import DEEP, follow\n"
        "for name, make in DEEP.items(): print(name, follow(make)[:80].encode(), flush=True)"
    )
    ran = subprocess.run(
        [sys.executable, "-c", source], cwd=Path(__file__).parents[2], capture_output=True, text=True
    )
    assert ran.returncode == 0, f"after {ran.stdout.splitlines()[-1:]}: {ran.stderr[-500:]}"
    assert len(ran.stdout.splitlines()) == len(DEEP)


@pytest.mark.parametrize("kind", MOST, ids=lambda one: one.value)
def test_a_grammar_has_so_many_characters_and_not_one_more(kind: GrammarKind) -> None:
    most = MOST[kind]
    before, after = {
        GrammarKind.JSON_SCHEMA: ('{"const":"', '"}'),
        GrammarKind.REGEX: ("", ""),
        GrammarKind.EBNF: ('start: "', '"'),
    }[kind]
    text = "a" * (most - len(before) - len(after))
    assert compiler().matcher(Grammar(kind, f"{before}{text}{after}")) is not None
    with pytest.raises(GrammarRefused, match=f"has {most + 1} characters, and {most} are the most"):
        compiler().matcher(Grammar(kind, f"{before}{text}a{after}"))


def test_deep_work_has_its_room_and_its_outcome() -> None:
    def depth(left: int) -> int:
        return 1 + max(depth(left - 1), 0) if left else 0

    usual = threading.stack_size()
    assert with_deep_stack(lambda: depth(500)) == 500
    assert with_deep_stack(threading.current_thread) is not threading.current_thread()
    with pytest.raises(KeyError, match="what it raises"):
        with_deep_stack(lambda: {"a": 1}["what it raises"])
    assert threading.stack_size() == usual
