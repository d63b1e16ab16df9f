"""What share of a whole step is the scheduler's, with real small models on the processor, and how steps spread.

One model is the example's; the other has the shape of a published one of 135 million parameters. Both are in
float32, with random weights. What a step does outside its forward pass is bookkeeping.
"""

from __future__ import annotations

import tempfile
from functools import cached_property
from pathlib import Path
from statistics import median
from time import process_time

import torch

from bench.harness import Row, Timing, cpu_seconds, timed_row
from bench.scheduler import percentiles
from devicekit.device import get_device
from devicekit.engine import Engine, EngineConfig
from devicekit.runners import attention
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.huggingface import AutoConfig, AutoModelForCausalLM
from devicekit.runners.loading import load_model, quiet
from devicekit.runners.transformers_runner import TransformersRunner
from devicekit.scheduling.batch import ForwardBatch, StepOutput
from devicekit.scheduling.request import SamplingParams
from examples.checkpoints import write_example_checkpoint

_MODEL = {
    "vocab_size": 49_152,
    "hidden_size": 576,
    "intermediate_size": 1_536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 2_048,
    "tie_word_embeddings": True,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_RUNNING = 8
_WARM, _STEPS = 4, 40
_SHARE = 1.0  # percent of a step of the larger model that bookkeeping may take


def run() -> list[Row]:
    """Every case, the smaller model first."""
    with tempfile.TemporaryDirectory() as folder:
        example = write_example_checkpoint(Path(folder) / "example", seed=1)
        return [*_rows(example, None), *_rows(write_model(Path(folder) / "small"), _SHARE)]


def _rows(path: Path, most: float | None) -> list[Row]:
    device = get_device("cpu")
    attention.register()
    directory = ModelDirectory.open(path)
    runner = _Timed(directory, load_model(directory, dtype=None).to(device.torch_device), device)
    engine = Engine(runner, device, EngineConfig(max_running=_RUNNING, kv_tokens=8192))
    parameters = sum(tensor.numel() for _, tensor in engine.runner.named_weights())
    of = f"{parameters / 1e6:.1f} M parameters, {_RUNNING} running"
    whole = _steps(engine)
    passes = runner.passes[_WARM:]
    apart = [step - forward for step, forward in zip(whole, passes, strict=True)]
    shares = [100 * rest / step for rest, step in zip(apart, whole, strict=True)]
    times = {f"whole step, {of}: {at}th percentile": seconds for at, seconds in percentiles(whole).items()}
    times[f"bookkeeping in it, {of}"] = median(apart)
    rows = [timed_row(case, Timing.of(seconds * 1e6)) for case, seconds in times.items()]
    return [*rows, Row(f"share of bookkeeping, {of}", median(shares), "%", target=most)]


def write_model(path: Path, seed: int = 1, **other: int) -> Path:
    """A checkpoint of the larger model; with ``other`` numbers in its config, of another size."""
    config = AutoConfig.for_model("llama", **{**_MODEL, **other})
    with torch.random.fork_rng(devices=[]), quiet():
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
        model.save_pretrained(path)
    return path


def _steps(engine: Engine) -> list[float]:
    """CPU seconds of each decode step."""
    params = SamplingParams(max_new_tokens=_WARM + _STEPS + 8, temperature=0, ignore_eos=True)
    for number in range(_RUNNING):
        engine.submit([number + 3, 5, 7], params)
    whole = [cpu_seconds(engine.step) for _ in range(_WARM + _STEPS)]
    return whole[_WARM:]


class _Timed(TransformersRunner):
    """A runner whose forward passes are timed."""

    @cached_property
    def passes(self) -> list[float]:
        """CPU seconds of each."""
        return []

    def step(self, batch: ForwardBatch) -> StepOutput:
        started = process_time()
        try:
            return super().step(batch)
        finally:
            self.passes.append(process_time() - started)
