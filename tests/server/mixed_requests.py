"""Requests with their features mixed at random, for loads: every one of them is in order, and has an answer."""

from __future__ import annotations

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

WORDS = ("Pages", " of", " keys", " and", " values", "\n", " é", " 日本", " 🙂", " a")
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"]}
TOOL = {"type": "function", "function": {"name": "look", "parameters": SCHEMA}}


@dataclass(frozen=True)
class Mixed:
    """One request."""

    path: str
    body: Mapping[str, object]
    sequences: int  # that it makes

    def ends(self, documents: Sequence[Mapping[str, Any]]) -> list[str]:
        """How its sequences ended, of its whole answer or of all events of its stream."""
        if self.path == "/generate":
            reasons = [one["meta_info"]["finish_reason"] for one in documents]
            return [one["type"] for one in reasons if one]
        choices = [choice for one in documents for choice in one["choices"]]
        return [one["finish_reason"] for one in choices if one["finish_reason"]]


def mixed(draw: random.Random) -> Mixed:
    """Draw one."""
    return draw.choice((_generate, _generate, _completion, _chat))(draw)


def _generate(draw: random.Random) -> Mixed:
    prompts: list[object] = [_prompt(draw) for _ in range(draw.randrange(1, 4))]
    kind = "text" if isinstance(prompts[0], str) else "input_ids"
    prompts = [one for one in prompts if isinstance(one, str) == (kind == "text")]
    n = draw.randrange(1, 3)
    params = {"max_new_tokens": draw.randrange(1, 30), "n": n, **_some(draw, _SAMPLING)}
    params |= _some(draw, {"sampling_seed": 7, "min_new_tokens": 1, "no_stop_trim": True})
    params = _perhaps_constrained(draw, params, ({"regex": "[a-z ]{1,20}"}, {"json_schema": SCHEMA}))
    body = {kind: prompts, "sampling_params": params, **_some(draw, _ROUTING)}
    if draw.random() < 0.3:
        asked = {"top_logprobs_num": 3, "logprob_start_len": 0, "token_ids_logprob": [5, 6]}
        body |= {"return_logprob": True, **_some(draw, {**asked, "return_text_in_logprobs": True})}
    return Mixed("/generate", body, len(prompts) * n)


def _completion(draw: random.Random) -> Mixed:
    n = draw.randrange(1, 3)
    fields = {"echo": True, "logprobs": 2, "return_token_ids": True, "return_meta_info": True}
    body = {"prompt": _prompt(draw), "n": n, **_openai(draw), **_some(draw, fields)}
    body = _perhaps_constrained(
        draw, body, ({"guided_choice": ["yes", "no"]}, {"ebnf": 'root ::= "a" | "bc"'})
    )
    return Mixed("/v1/completions", body, n)


def _chat(draw: random.Random) -> Mixed:
    n = draw.randrange(1, 3)
    messages = [{"role": "user", "content": _text(draw)} for _ in range(draw.randrange(1, 4))]
    body = {"messages": messages, "n": n, **_openai(draw)}
    body |= draw.choice(({}, {"logprobs": True}, {"logprobs": True, "top_logprobs": 4}))
    tools = {"tools": [TOOL]}
    constraints = ({"response_format": {"type": "json_object"}}, {**tools, "tool_choice": "required"}, tools)
    return Mixed("/v1/chat/completions", _perhaps_constrained(draw, body, constraints), n)


def _openai(draw: random.Random) -> dict[str, object]:
    fields = {"seed": 7, "min_tokens": 1, "include_stop_str_in_output": True}
    return {"max_tokens": draw.randrange(1, 30), **_some(draw, {**_SAMPLING, **fields, **_ROUTING})}


def _perhaps_constrained(
    draw: random.Random, body: Mapping[str, object], constraints: Sequence[Mapping[str, object]]
) -> dict[str, object]:
    if draw.random() < 0.8:
        return {**body}
    # A grammar says when an output is complete.
    return {**body, **draw.choice(constraints), **dict.fromkeys(("min_tokens", "min_new_tokens"))}


_SAMPLING: Mapping[str, object] = {
    "temperature": 0.7,
    "top_p": 0.9,
    "top_k": 40,
    "min_p": 0.01,
    "stop": ["the", "\n\n", "é"],
    "stop_token_ids": [9],
    "ignore_eos": True,
    "logit_bias": {"5": 2.5, "6": -100},
    "presence_penalty": 0.5,
    "frequency_penalty": -0.5,
    "repetition_penalty": 1.1,
    "skip_special_tokens": False,
}
_ROUTING: Mapping[str, object] = {"extra_key": "one", "cache_salt": "two"}


def _some(draw: random.Random, fields: Mapping[str, object]) -> dict[str, object]:
    return {name: value for name, value in fields.items() if draw.random() < 0.25}


def _prompt(draw: random.Random) -> str | list[int]:
    if draw.random() < 0.5:
        return _text(draw)
    return [draw.randrange(2, 300)] * draw.randrange(1, 60)


def _text(draw: random.Random) -> str:
    return "".join(draw.choices(WORDS, k=draw.randrange(1, 30)))
