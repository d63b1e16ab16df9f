"""Outputs that must follow a grammar do, on every endpoint and in every spelling."""

from __future__ import annotations

import json
import random
import re
import resource
from pathlib import Path

import openai
import pytest

from devicekit.text import Grammar, GrammarKind
from tests.server.conftest import Server, events

SCHEMA = {
    "type": "object",
    "properties": {"a": {"type": "integer", "maximum": 999}, "b": {"enum": ["x", "y"]}},
    "required": ["a", "b"],
    "additionalProperties": False,
}
RULES = 'root ::= "<" word ">"\nword ::= "ab" | "cd" word'
MESSAGES = [{"role": "user", "content": "Pages"}]
HOT = {"temperature": 1.0, "max_tokens": 300}


def schema(rng: random.Random, depth: int = 0) -> dict[str, object]:
    """A schema of what a random model can finish: everything in it is short."""
    kinds = ["integer", "boolean", "null", "enum", "string"] + (["object", "array"] if depth < 2 else [])
    kind = rng.choice(kinds)
    if kind == "enum":
        return {"enum": rng.sample(["x", 1, None, True, "é", "a b"], rng.randint(1, 4))}
    if kind == "integer":
        return {"type": "integer", "minimum": 0, "maximum": rng.randint(1, 99)}
    if kind == "string":
        return {"type": "string", "maxLength": rng.randint(0, 6)}
    if kind == "array":
        return {"type": "array", "items": schema(rng, depth + 1), "maxItems": rng.randint(0, 3)}
    if kind == "object":
        names = rng.sample(["a", "b", "c d", "é"], rng.randint(0, 3))
        return {
            "type": "object",
            "properties": {name: schema(rng, depth + 1) for name in names},
            "required": names,
            "additionalProperties": False,
        }
    return {"type": kind}


def fits(value: object, wanted: dict[str, object]) -> bool:
    """Whether a value is one of a schema of this file."""
    if "enum" in wanted:
        return any(value == one and type(value) is type(one) for one in wanted["enum"])
    kind = wanted["type"]
    if kind == "object":
        names = wanted["properties"]
        return (
            isinstance(value, dict)
            and set(value) == set(names)
            and all(fits(value[name], names[name]) for name in names)
        )
    if kind == "array":
        return (
            isinstance(value, list)
            and len(value) <= wanted["maxItems"]
            and all(fits(one, wanted["items"]) for one in value)
        )
    if kind == "integer":
        return isinstance(value, int) and wanted["minimum"] <= value <= wanted["maximum"]
    if kind == "string":
        return isinstance(value, str) and len(value) <= wanted["maxLength"]
    return isinstance(value, bool) if kind == "boolean" else value is None


@pytest.mark.parametrize("seed", range(16))
def test_every_output_parses(shared: Server, seed: int) -> None:
    rng = random.Random(seed)
    wanted = schema(rng)
    params = {
        "json_schema": json.dumps(wanted),
        "max_new_tokens": 2000,
        "temperature": rng.choice([0, 1.0, 2.0]),
    }
    answer = shared.post("/generate", {"text": "Pages", "sampling_params": {**params, "n": 3}}).json()
    for one in answer:
        assert one["meta_info"]["finish_reason"]["type"] == "stop", (seed, wanted, one["text"])
        assert fits(json.loads(one["text"]), wanted), (seed, wanted, one["text"])


CHOICES = ['a "b"', "é\\n ::= /x/"]
SPELLINGS = {
    "json_schema": ({"json_schema": SCHEMA}, "json"),
    "json_schema in text": ({"json_schema": json.dumps(SCHEMA)}, "json"),
    "guided_json": ({"guided_json": SCHEMA}, "json"),
    "structured_outputs json": ({"structured_outputs": {"json": SCHEMA}}, "json"),
    "regex": ({"regex": "(ab|cd)+e"}, "regex"),
    "guided_regex": ({"guided_regex": "(ab|cd)+e"}, "regex"),
    "structured_outputs regex": ({"structured_outputs": {"regex": "(ab|cd)+e"}}, "regex"),
    "ebnf": ({"ebnf": RULES}, "rules"),
    "guided_grammar": ({"guided_grammar": RULES}, "rules"),
    "structured_outputs grammar": ({"structured_outputs": {"grammar": RULES}}, "rules"),
    "guided_choice": ({"guided_choice": CHOICES}, "choice"),
    "structured_outputs choice": ({"structured_outputs": {"choice": CHOICES}}, "choice"),
}


def check(text: str, kind: str) -> None:
    if kind == "json":
        value = json.loads(text)
        assert set(value) == {"a", "b"}
        assert isinstance(value["a"], int)
        assert value["b"] in ("x", "y")
    else:
        choice = "|".join(map(re.escape, CHOICES))
        patterns = {"regex": r"(ab|cd)+e", "rules": r"<(cd)*ab>", "choice": choice}
        assert re.fullmatch(patterns[kind], text), text


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_endpoint_knows_every_spelling(shared: Server, name: str) -> None:
    fields, kind = SPELLINGS[name]
    params = {"max_new_tokens": 300, "temperature": 1.0, **fields}
    check(shared.post("/generate", {"text": "Pages", "sampling_params": params}).json()["text"], kind)
    done = shared.post("/v1/completions", {"prompt": "Pages", **HOT, **fields}).json()
    check(done["choices"][0]["text"], kind)
    chat = shared.post("/v1/chat/completions", {"messages": MESSAGES, **HOT, **fields}).json()
    check(chat["choices"][0]["message"]["content"], kind)
    assert chat["choices"][0]["finish_reason"] == "stop"


def test_response_formats(shared: Server) -> None:
    with openai.OpenAI(base_url=f"{shared.url}/v1", api_key="-", max_retries=0) as client:
        wanted = {"type": "json_schema", "json_schema": {"name": "s", "schema": SCHEMA, "strict": True}}
        done = client.chat.completions.create(model="a", messages=MESSAGES, response_format=wanted, **HOT)
        check(done.choices[0].message.content, "json")
        loose = client.chat.completions.create(
            model="a",
            messages=MESSAGES,
            response_format={"type": "json_object"},
            logit_bias={str(token): 20 for token in shared.serving.engine.encode("}")},
            **HOT,
        )
        assert isinstance(json.loads(loose.choices[0].message.content), dict)
        chunks = client.chat.completions.create(
            model="a", messages=MESSAGES, response_format=wanted, stream=True, **HOT
        )
        check("".join(one.choices[0].delta.content or "" for one in chunks if one.choices), "json")


@pytest.mark.parametrize(
    "fields",
    [
        {"regex": "(a"},
        {"ebnf": "root ::= missing"},
        {"json_schema": {"type": "odd"}},
        {"json_schema": "{"},
        {"json_schema": SCHEMA, "regex": "a"},
        {"regex": "a", "min_new_tokens": 2, "min_tokens": 2},
    ],
)
def test_what_cannot_be_followed_is_refused_everywhere(shared: Server, fields: dict[str, object]) -> None:
    for path, document in (
        ("/generate", {"text": "Pages", "sampling_params": fields}),
        ("/v1/completions", {"prompt": "Pages", **fields}),
        ("/v1/chat/completions", {"messages": MESSAGES, **fields}),
    ):
        assert shared.post(path, document).status_code == 400, path


DEAD = "dead"  # derives nothing: "dead ::= dead"


def _ways(rng: random.Random) -> list[list[str]]:
    """Alternatives of a grammar, each a few texts behind each other, of which one may be derived from nothing."""
    ways = [
        [rng.choice(["a", "ab", "é", "c"]) for _ in range(rng.randint(1, 3))]
        for _ in range(rng.randint(1, 4))
    ]
    for way in ways:
        if rng.random() < 0.4:
            way.insert(rng.randint(0, len(way)), DEAD)
    return ways


@pytest.mark.parametrize("seed", range(12))
def test_an_output_that_ends_by_itself_is_derived_from_its_grammar(shared: Server, seed: int) -> None:
    rng = random.Random(seed)
    ways = _ways(rng)
    rules = " | ".join(" ".join(one if one is DEAD else json.dumps(one) for one in way) for way in ways)
    derived = {"".join(way) for way in ways if DEAD not in way}
    params = {"ebnf": f"root ::= {rules}\ndead ::= dead", "max_new_tokens": 20, "temperature": 3.0}
    for _ in range(4):
        document = {"text": "Pages", "sampling_params": params}
        answer = shared.post("/generate", document)
        if answer.status_code == 200:
            assert answer.json()["text"] in derived, ways
        else:
            assert answer.status_code == 400, (ways, answer.text)
            assert "ebnf" in answer.text or "grammar" in answer.text
            assert any(DEAD in way for way in ways), (ways, answer.text)
        chat = {"messages": MESSAGES, **HOT, "temperature": 3.0, "ebnf": params["ebnf"], "stream": True}
        with shared.http.stream("POST", "/v1/chat/completions", json=chat) as stream:
            if stream.status_code == 400:
                assert not derived, ways
                continue
            chunks = [*events(stream)]
        if "error" in chunks[-1]:
            assert chunks[-1]["error"]["code"] == 400, chunks[-1]
        else:
            deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"]]
            assert "".join(one.get("content") or "" for one in deltas) in derived, ways


@pytest.mark.parametrize(
    "fields",
    [
        {"json_schema": {"$ref": "#"}},
        {"json_schema": {"allOf": [{"$ref": "#"}]}},
        {"ebnf": "start: nothing\nnothing: nothing"},
        {"regex": "[^\\x00-\\U0010ffff]"},
        {"json_schema": {"type": "object", "properties": {f"k{at}": {} for at in range(3000)}}},
    ],
)
def test_what_leads_nowhere_and_what_is_too_much_is_no_fault_of_the_server(
    shared: Server, fields: dict[str, object]
) -> None:
    answer = shared.post("/generate", {"text": "Pages", "sampling_params": {"max_new_tokens": 9, **fields}})
    assert answer.status_code == 400
    message = answer.json()["error"]["message"]
    assert "follow" in message
    assert "\n" not in message


def test_one_of_very_many_choices(shared: Server) -> None:
    choices = [f"{at}{'x' * (at % 7)}" for at in range(10_000)]
    found = shared.generate("Pages", guided_choice=choices, temperature=1.5, max_new_tokens=30)
    assert found["text"] in choices
    assert found["meta_info"]["finish_reason"]["type"] == "stop"


def test_grammars_are_compiled_once_and_forgotten_by_a_flush(shared: Server) -> None:
    grammars = shared.serving.engine.grammars
    assert grammars is not None
    shared.post("/flush_cache")
    assert len(grammars) == 0
    names = [part.name for part in shared.serving.engine.scheduler.state.participants]
    assert names.index("grammar_cache") < names.index("cache_metrics")
    misses = grammars.misses
    for _ in range(3):
        shared.generate("Pages", regex="(ab|cd)+e")
    assert (grammars.misses, len(grammars)) == (misses + 1, 1)
    assert grammars.matcher(Grammar(GrammarKind.REGEX, "(ab|cd)+e")) is not None
    shared.post("/flush_cache")
    assert len(grammars) == 0


def test_who_follows_no_grammar_is_not_touched_by_those_who_do(shared: Server) -> None:
    alone = shared.generate("Weights change", max_new_tokens=16)["output_ids"]
    document = {
        "text": ["Weights change", "Pages"],
        "sampling_params": [
            {"max_new_tokens": 16, "temperature": 0},
            {"max_new_tokens": 60, "temperature": 0, "regex": "(ab|cd){4}"},
        ],
    }
    free, bound = shared.post("/generate", document).json()
    assert free["output_ids"] == alone
    assert re.fullmatch("(ab|cd){4}", bound["text"])


def test_grammars_that_lead_nowhere_are_not_kept_and_cost_little(shared: Server) -> None:
    """Of ten characters a client could make 80 MB and seconds, as often as it liked."""
    grammars = shared.serving.engine.grammars
    shared.post("/flush_cache")
    before = _resident()
    for letter in "abcdefghijkl":
        params = {"regex": f"{letter}{{1000000}}", "temperature": 0}
        answer = shared.post("/generate", {"text": "a", "sampling_params": params})
        assert answer.status_code == 400
    assert len(grammars) == 0
    assert _resident() - before < 200 << 20
    for at in range(4):
        choices = [f"{at}{number:04}" + "x" * 1000 for number in range(3000)]
        shared.generate("a", guided_choice=choices, max_new_tokens=1)
    assert 0 < len(grammars) < 3, "together they would be 12 million characters"


def _resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * resource.getpagesize()
