"""Whatever is served has the model's own tokens; whatever cannot be is refused by one clear sentence."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM
from transformers.models.llama import modeling_llama

import devicekit
from devicekit.engine import Engine, EngineConfig
from devicekit.runners import UnsupportedModel
from devicekit.runners.transformers_runner import TransformersRunner
from devicekit.scheduling.request import SamplingParams
from tests.architectures.judge import Verdict, judge
from tests.architectures.tiny import ARCHITECTURES, write_tiny
from tests.oracle import own_answers

# One of each kind: attention of its own, ALiBi, chunks, states that go on one by one, and both in one layer.
SAMPLE = (
    "falcon",
    "bloom, heads no power of two",
    "mpt",
    "llama4_text",
    "mamba",
    "mamba2",
    "jamba",
    "zamba2",
)
GREEDY = SamplingParams(max_new_tokens=12, temperature=0.0, ignore_eos=True)


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


@pytest.mark.parametrize("architecture", SAMPLE)
def test_tokens_of_a_sample_are_the_models_own(architecture: str) -> None:
    found = judge(architecture)
    if found.verdict is Verdict.REFUSED and "needs transformers" in found.remark:
        pytest.skip(found.remark)
    assert found.verdict is Verdict.EQUAL, found


@pytest.mark.thorough
@pytest.mark.parametrize("architecture", [one for one in ARCHITECTURES if one not in SAMPLE])
def test_no_architecture_is_served_with_other_tokens(architecture: str) -> None:
    found = judge(architecture)
    assert found.verdict is not Verdict.WRONG, found
    assert "\n" not in found.remark


@pytest.mark.parametrize("architecture", ["mamba", "mpt"])
def test_an_engine_chunks_retracts_and_caches_them(architecture: str, tmp_path: Path) -> None:
    path = write_tiny(architecture, tmp_path)
    shared = list(range(5, 39))
    prompts = [shared, [7], [*shared, 9, 9, 300], list(range(100, 133))]
    config = EngineConfig(
        max_running=3, max_batch_tokens=13, kv_tokens=112, conservativeness=0.05, checked=True
    )
    engine = Engine.open(path, devicekit.get_device("cpu"), config=config)
    generations = [engine.submit(prompt, GREEDY) for prompt in prompts]
    while not all(one.done for one in generations):
        engine.step()
    assert [one.tokens for one in generations] == own_answers(path, prompts, 12)
    (again,) = engine.generate([prompts[2]], GREEDY)
    assert again.tokens == generations[2].tokens
    assert again.cached_tokens > 0


def test_a_model_whose_tokens_look_at_others_by_themselves_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Packed tokens are of many requests: what reaches the neighbour in another way would be another's answer."""
    config = LlamaConfig(
        vocab_size=64, hidden_size=32, intermediate_size=32, num_hidden_layers=2, num_attention_heads=2
    )
    LlamaForCausalLM(config).save_pretrained(tmp_path)
    TransformersRunner.load(tmp_path, devicekit.get_device("cpu"))  # as it is, it is served
    own = modeling_llama.LlamaMLP.forward

    def shifted(self: modeling_llama.LlamaMLP, x: torch.Tensor) -> torch.Tensor:
        return own(self, x + x.roll(1, dims=1))

    monkeypatch.setattr(modeling_llama.LlamaMLP, "forward", shifted)
    with pytest.raises(UnsupportedModel, match="in another way than by attention or states"):
        TransformersRunner.load(tmp_path, devicekit.get_device("cpu"))
