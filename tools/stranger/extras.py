"""What a stranger runs, and with which extra it must work; without that, it must name one."""

from __future__ import annotations

import re
from collections.abc import Mapping
from types import MappingProxyType

from tools.environments import ROOT

# By name: the command line. All run in one folder, in this order.
COMMANDS: Mapping[str, str] = MappingProxyType(
    {
        "list": "list",
        "info": "info",
        "doctor": "doctor",
        "new-backend": "new-backend acme --output acme",
        "audit": "audit neutral.py",
        "audit --fix": "audit --fix engine.py",
        "baseline": "baseline record run.json --output baseline.json",
        "replay": "replay log.csv",
        "top --once": "top --follow run.jsonl --once",
        "top": "top --follow run.jsonl",
        "plot html": "plot run.jsonl --output run.html",
        "plot png": "plot run.jsonl --output run.png",
        "example-model": "example-model models",
        "generate": "generate --model models/v1 --prompt Pages --max-new-tokens 2",
        "info --plan": "info --device cpu --plan models/v1 --tensor-parallel 2",
        "demo": "demo",
        "serve": "serve --model models/v1 --port 0",
        "fleet": "fleet --engine http://127.0.0.1:9 status",
        "conformance": "conformance run --backend acme_backend:Backend --profile core --quiet",
    }
)
ENDLESS: Mapping[str, str] = MappingProxyType({"top": "", "serve": "Serving on "})
"""Commands that do not end by themselves, and the beginning of the line after which they may be told to."""

_README = (ROOT / "README.md").read_text(encoding="utf-8")
_PARTS = (ROOT / "docs" / "parts.md").read_text(encoding="utf-8")


def example(name: str) -> str:
    """The README's example of that name.

    Raises:
        KeyError: there is none.
    """
    found = re.search(rf"<!-- tested: {name} -->\n```\w+\n(.*?)```", _README, re.DOTALL)
    if found is None:
        raise KeyError(f"the README has no example {name}")
    return found[1]


def _parts() -> dict[str, str]:
    """By heading: the program of each part that can be taken alone."""
    found = re.findall(r"^## (.+?)\n.*?```python\n(.*?)```", _PARTS, re.DOTALL | re.MULTILINE)
    return {f"part: {heading.lower()}": program for heading, program in found}


_GRAMMAR = """
from devicekit.engine import Engine
from devicekit.scheduling import SamplingParams
from devicekit.text.grammar import Grammar, GrammarKind

engine = Engine.open("models/v1", "cpu")
digits = SamplingParams(max_new_tokens=8, grammar=Grammar(GrammarKind.REGEX, "[0-9]{3}"))
(made,) = engine.generate(["Pages"], digits)
assert made.text.isdigit() and len(made.text) == 3, made
"""
_STREAM = """
from devicekit.weights.sockets import MessageSocket

receiver = MessageSocket("ipc://weights")

import zmq

sender = zmq.Context.instance().socket(zmq.REQ)
sender.bind("ipc://weights")
sender.send(b"a tensor")
while not (came := receiver.receive()):
    pass
assert came == [b"a tensor"]
receiver.close()
sender.close(0)
"""
_RAY = """
from devicekit.ray_serve import Arguments, build

assert callable(build) and Arguments(model="models/v1").model == "models/v1"
"""
PROGRAMS: Mapping[str, str] = MappingProxyType(
    {**_parts(), "README: engine": example("engine"), "grammar": _GRAMMAR, "stream": _STREAM, "ray": _RAY}
)
"""By name: a program. They run after the commands, in the same folder."""

_HOST = ("part: release", "part: residency", "part: out-of-memory recovery", "part: observe")
BASE = (
    *("list", "info", "doctor", "new-backend", "audit", "baseline", "replay", "top --once", "plot html"),
    *_HOST,
)
_ENGINE = ("part: memory", "part: scheduling")
_MODELS = (*_ENGINE, "example-model", "generate", "info --plan", "README: engine")
_SERVE = (*_MODELS, "serve", "demo")
EXTRAS: Mapping[str, tuple[str, ...]] = MappingProxyType(
    {
        "": (),
        "engine": _ENGINE,
        "transformers": _MODELS,
        "tp": _MODELS,
        "serve": _SERVE,
        "grammar": (),
        "fleet": ("fleet",),
        "stream": (),
        "cli": ("top",),
        "audit": ("audit --fix",),
        "plot": ("plot png",),
        "conformance": (*_ENGINE, "conformance"),
        "ray": (*_SERVE, "fleet", "ray"),
        "grammar,stream,transformers": (*_MODELS, "grammar", "stream"),
    }
)
"""By extras: what works with them that does not work without; `BASE` works with all of them."""
