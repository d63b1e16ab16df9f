"""An engine on the device gives the tokens that the host gives, and that transformers gives by itself."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from devicekit.device import get_device
from devicekit.devtools.certify.ground import Ground
from devicekit.devtools.certify.parts.serving import Ties, open_engine, prompts, reference, tokens_of
from devicekit.devtools.certify.record import Findings

_LIMIT = 32
_COUNT = 8


def run(ground: Ground, findings: Findings) -> None:
    """Greedy in float32, where the roads agree but for ties; then drawn by seed, twice."""
    path = ground.model("tiny")
    engine = open_engine(path, ground.device, torch.float32)
    asked = prompts(_COUNT, 5, engine.runner.limits.vocab_size)
    served = engine.generate(asked, max_new_tokens=_LIMIT, temperature=0.0)
    mine = tokens_of(served)
    findings.number("prompts", len(asked), "")
    findings.number("tokens", sum(map(len, mine)), "")
    findings.check("the pools' books balance afterwards", engine.audit().balanced)
    ties = Ties(path)
    if ground.on_host:
        findings.check("the tokens are the host's", None, "the device is the host")
    else:
        host = open_engine(path, get_device("cpu"), torch.float32)
        theirs = tokens_of(host.generate(asked, max_new_tokens=_LIMIT, temperature=0.0))
        _compare("the host's", ties, asked, mine, theirs, findings)
    alone = reference(path, ground.device, asked, served, _LIMIT)
    _compare("transformers' own on the same device", ties, asked, mine, alone, findings)
    drawn = [
        tokens_of(engine.generate(asked, max_new_tokens=_LIMIT, temperature=0.8, seed=7)) for _ in range(2)
    ]
    findings.check("tokens drawn with a seed are the same a second time", drawn[0] == drawn[1])


def _compare(
    whose: str,
    ties: Ties,
    asked: Sequence[list[int]],
    mine: Sequence[list[int]],
    theirs: Sequence[list[int]],
    findings: Findings,
) -> None:
    equal = sum(one == other for one, other in zip(mine, theirs, strict=True))
    findings.number(f"outputs equal to {whose}", equal, f"of {len(mine)}")
    found = [ties.unexplained(*three) for three in zip(asked, mine, theirs, strict=True)]
    wrong = [f"prompt {at}: {text}" for at, text in enumerate(found) if text]
    findings.check(f"the tokens are {whose}, but for ties", not wrong, "; ".join(wrong))
