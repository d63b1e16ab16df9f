"""Memory that an engine releases reaches the driver; what it resumes brings the same tokens back."""

from __future__ import annotations

import gc

from devicekit.devtools.certify.ground import Ground
from devicekit.devtools.certify.parts.serving import open_engine, prompts, tokens_of
from devicekit.devtools.certify.record import Findings

_SHARE = 0.9  # of weights and KV pool that the driver must see again
_KEPT = 4 << 20  # bytes of segments that other small tensors may keep from it


def run(ground: Ground, findings: Findings) -> None:
    """Serve, release with a copy of the weights on the host, ask the driver, resume, serve again."""
    device = ground.device
    engine = open_engine(ground.model("small"), device, ground.dtype, tokens=65_536 if ground.real else 4096)
    asked = prompts(4, 6, 384)
    before = tokens_of(engine.generate(asked, max_new_tokens=24, temperature=0.0))
    expected = engine.weight_bytes + engine.plan.pool_bytes
    findings.number("weights and KV pool", expected, "B")
    gc.collect()
    device.empty_cache()
    device.synchronize()
    full, info = device.memory_stats().reserved, device.memory_info()
    released = engine.release_memory(backup_weights=True)
    findings.check("the release succeeds", released.success, released.message)
    empty, freed = device.memory_stats().reserved, device.memory_info()
    findings.number("reserved before", full, "B")
    findings.number("reserved after the release", empty, "B")
    gained = None if info.free is None or freed.free is None else freed.free - info.free
    findings.number("gained by the driver", gained, "B")
    findings.note(f"the driver's figure is from: {info.source}")
    sentence = (
        f"the driver has at least {_SHARE:.0%} of it again, but for {_KEPT >> 20} MiB of shared segments"
    )
    if ground.on_host or gained is None:
        findings.check(
            sentence, None, "the host's free memory is everybody's" if ground.on_host else "it does not say"
        )
    else:
        findings.check(
            sentence, gained > 0 and gained >= _SHARE * expected - _KEPT, f"{gained} B of {expected} B"
        )
    resumed = engine.resume_memory()
    findings.check("resuming succeeds", resumed.success, resumed.message)
    findings.number("reserved after resuming", device.memory_stats().reserved, "B")
    after = tokens_of(engine.generate(asked, max_new_tokens=24, temperature=0.0))
    findings.check("the tokens are those from before", after == before)
