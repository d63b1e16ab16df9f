"""What a decode step does besides its forward pass, as a share of the step."""

from __future__ import annotations

import time
from functools import cached_property
from statistics import median

from devicekit.devtools.certify.ground import Ground
from devicekit.devtools.certify.parts.serving import prompts
from devicekit.devtools.certify.record import Findings
from devicekit.engine import Engine, EngineConfig
from devicekit.runners import attention
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.loading import load_model
from devicekit.runners.transformers_runner import TransformersRunner
from devicekit.scheduling.batch import ForwardBatch, StepOutput
from devicekit.scheduling.request import SamplingParams

_WARM = 6


def run(ground: Ground, findings: Findings) -> None:
    """A full batch of decode steps. The runner answers on the host: a pass has ended when it returns."""
    device, running, steps = ground.device, *((64, 100) if ground.real else (8, 30))
    attention.register()
    directory = ModelDirectory.open(ground.model("large"))
    runner = _Timed(directory, load_model(directory, dtype=ground.dtype).to(device.torch_device), device)
    config = EngineConfig(max_running=running, kv_tokens=running * 256, max_batch_tokens=2048)
    engine = Engine(runner, device, config)
    findings.number("parameters", sum(tensor.numel() for _, tensor in runner.named_weights()), "")
    findings.number("requests running", running, "")
    params = SamplingParams(max_new_tokens=_WARM + steps + 40, temperature=0.0, ignore_eos=True)
    for prompt in prompts(running, 4, 384):
        engine.submit(prompt, params)
    while engine.scheduler.state.prefilling or len(engine.scheduler.state.running) < running:
        engine.step()
    whole: list[float] = []
    for _ in range(_WARM + steps):
        runner.seconds.clear()
        started = time.perf_counter()
        engine.step()
        took = time.perf_counter() - started
        if len(runner.seconds) == 1:
            whole.append(took)
            runner.kept.append(runner.seconds[0])
    rest = [step - forward for step, forward in zip(whole[_WARM:], runner.kept[_WARM:], strict=True)]
    findings.number("decode step, median", median(whole[_WARM:]) * 1e6, "us")
    findings.number("besides its forward pass, median", median(rest) * 1e6, "us")
    share = median(part / step for part, step in zip(rest, whole[_WARM:], strict=True))
    findings.number("share of the step", 100 * share, "%")
    if not ground.real:
        findings.note("no real accelerator: a tiny model, and times that mean nothing")
    findings.check("every step was one forward pass", len(whole) == _WARM + steps)


class _Timed(TransformersRunner):
    """A runner whose forward passes are timed."""

    @cached_property
    def seconds(self) -> list[float]:
        """Of the passes since it was cleared."""
        return []

    @cached_property
    def kept(self) -> list[float]:
        """One for each step that is measured."""
        return []

    def step(self, batch: ForwardBatch) -> StepOutput:
        started = time.perf_counter()
        try:
            return super().step(batch)
        finally:
            self.seconds.append(time.perf_counter() - started)
