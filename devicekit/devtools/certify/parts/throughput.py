"""Tokens a second of a full batch, beside transformers' own continuous batching on the same device."""

from __future__ import annotations

import copy
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from devicekit.devtools.certify.ground import Ground
from devicekit.devtools.certify.parts.serving import open_engine, prompts
from devicekit.devtools.certify.record import Findings
from devicekit.runners import huggingface as hf
from devicekit.runners.loading import quiet

_BEGUN = "transformers' continuous batching gave no figure: it was begun, and neither ended nor failed"


def run(ground: Ground, findings: Findings) -> None:
    """Ours first, and judged before the peer begins."""
    count, length, new = (64, 64, 128) if ground.real else (4, 8, 16)
    path = ground.model("large")
    engine = open_engine(path, ground.device, ground.dtype, running=count, tokens=count * 2 * (length + new))
    asked = prompts(count, length, 384)
    engine.generate(asked[:2], max_new_tokens=4, temperature=0.0, ignore_eos=True)
    started = time.perf_counter()
    served = engine.generate(asked, max_new_tokens=new, temperature=0.0, ignore_eos=True)
    seconds = time.perf_counter() - started
    made = sum(len(one.tokens) for one in served)
    findings.number("requests at once", count, "")
    findings.number("devicekit", made / seconds, "tokens/s")
    findings.check("every request got all its tokens", made == count * new, f"{made} of {count * new}")
    del engine
    ground.device.empty_cache()
    findings.note(_BEGUN)
    findings.judge()  # so that a peer that hangs or crashes takes nothing along
    try:
        peer, why = _peer(ground, path, asked, new), ""
    except Exception as error:  # a peer that cannot run here is a row without a figure
        peer, why = None, f"{type(error).__name__}: {error}".split("\n")[0][:300]
    findings.outcome.notes.remove(_BEGUN)
    findings.number("transformers, continuous batching", peer, "tokens/s")
    if peer is None:
        findings.note(f"transformers' continuous batching gave no figure: {why or 'this release has none'}")
    else:
        findings.number("devicekit / transformers", made / seconds / peer, "x")
    if not ground.real:
        findings.note("no real accelerator: a tiny model, and times that mean nothing")


def _peer(ground: Ground, path: Path, asked: Sequence[list[int]], new: int) -> float | None:
    with quiet():
        model = hf.AutoModelForCausalLM.from_pretrained(path, dtype=ground.dtype, local_files_only=True)
    model = model.to(ground.device.torch_device).eval()
    batched = getattr(model, "generate_batch", None)
    if batched is None:
        return None
    config = copy.deepcopy(model.generation_config)
    config.update(max_new_tokens=new, do_sample=False, eos_token_id=-1)
    batched(inputs=list(asked[:2]), generation_config=config, progress_bar=False)
    started = time.perf_counter()
    results = batched(inputs=list(asked), generation_config=config, progress_bar=False)
    seconds = time.perf_counter() - started
    values = results.values() if isinstance(results, Mapping) else results
    made = sum(len(one.generated_tokens) for one in values)
    if made != len(asked) * new:
        raise RuntimeError(f"it made {made} of {len(asked) * new} tokens")
    return made / seconds
