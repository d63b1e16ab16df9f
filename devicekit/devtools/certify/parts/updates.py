"""A hundred weight updates under requests in flight, with and without emptying: reserved memory does not grow."""

from __future__ import annotations

from pathlib import Path

from devicekit.devtools.certify.ground import Ground
from devicekit.devtools.certify.parts.serving import open_engine, prompts, tokens_of
from devicekit.devtools.certify.record import Findings
from devicekit.engine import Engine, Generation
from devicekit.scheduling.messages import PauseMode
from devicekit.scheduling.request import SamplingParams

_UPDATES = 100
_RESERVE = 6.0  # seconds kept for judging
_LONG = SamplingParams(max_new_tokens=160, temperature=0.0, ignore_eos=True)


def run(ground: Ground, findings: Findings) -> None:
    """Half of the time for each policy; then the tokens of the last weights beside those of a fresh engine."""
    paths = (ground.model("small", 1), ground.model("small", 2))
    engine = open_engine(paths[0], ground.device, ground.dtype)
    share = (ground.left - _RESERVE) / 2
    for empty in (True, False):
        _series(ground, engine, paths, empty, ground.left - share if empty else _RESERVE, findings)
    engine.flush(timeout=60)
    asked = prompts(2, 6, 384)
    served = tokens_of(engine.generate(asked, max_new_tokens=16, temperature=0.0))
    del engine
    fresh = open_engine(paths[(_UPDATES - 1) % 2], ground.device, ground.dtype)
    expected = tokens_of(fresh.generate(asked, max_new_tokens=16, temperature=0.0))
    findings.check(
        "the tokens after the last update are those of an engine opened with its weights", served == expected
    )


def _series(
    ground: Ground, engine: Engine, paths: tuple[Path, Path], empty: bool, until: float, findings: Findings
) -> None:
    how = "emptying after each" if empty else "never emptying"
    reserved: list[int | None] = []
    flying: Generation | None = None
    refused = ""
    for number in range(_UPDATES):
        if ground.left < until:
            break
        if flying is None or flying.done:
            flying = engine.submit(prompts(1, 8, 384)[0], _LONG)
        engine.step()
        engine.pause(PauseMode.IN_PLACE)
        reply = engine.update_weights_from_disk(
            paths[number % 2], flush_cache=False, empty_cache=False, weight_version=f"{how} {number}"
        )
        engine.continue_generation(empty_cache=empty)
        engine.step()
        if not reply.success:
            refused = f"update {number}: {reply.message}"
            break
        reserved.append(ground.device.memory_stats().reserved)
    findings.number(f"updates, {how}", len(reserved), "")
    findings.check(f"{_UPDATES} updates in place were done, {how}", len(reserved) == _UPDATES, refused)
    _flat(reserved, how, findings)


def _flat(reserved: list[int | None], how: str, findings: Findings) -> None:
    sizes = [one for one in reserved if one is not None]
    sentence = f"reserved memory is flat over the last nine tenths, {how}"
    if not sizes or len(sizes) < len(reserved):
        findings.check(sentence, None, "the backend does not count reserved bytes")
        return
    begun = max(sizes[: max(1, len(sizes) // 10)])
    findings.number(f"reserved at most in the first tenth, {how}", begun, "B")
    findings.number(f"reserved at the end, {how}", sizes[-1], "B")
    findings.number(f"reserved at most, {how}", max(sizes), "B")
    findings.check(sentence, max(sizes) <= begun)
