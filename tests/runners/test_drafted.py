"""A draft model has its keys and values on its target's pages, whatever becomes of those."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import devicekit
from devicekit.contract.errors import ConfigurationError
from devicekit.device import Device
from devicekit.devtools.reference import own_model
from devicekit.engine import Engine, EngineConfig
from devicekit.registry import unregister_backend
from devicekit.runners.drafted import DraftedRunner
from devicekit.runners.transformers_runner import TransformersRunner
from devicekit.scheduling.batch import ForwardBatch, StepOutput
from devicekit.scheduling.kv_cache.host_cache import HostCacheManager
from devicekit.scheduling.messages import Selector, UpdateWeightsFromDisk
from devicekit.scheduling.request import SamplingParams
from devicekit.testing import simulation
from devicekit.testing.sim_backend import register
from devicekit.weights.operations import ChecksumReply, ChecksumWeights
from examples.checkpoints import write_example_checkpoint

NEW_TOKENS = 12
SHARED = list(range(30, 50))
GREEDY = SamplingParams(max_new_tokens=NEW_TOKENS, temperature=0.0, ignore_eos=True)
PROMPTS = [SHARED, [*SHARED, 7, 8], list(range(100, 133)), [*SHARED, 9], [5, 6]]


class WatchedDraft(TransformersRunner):
    """Notes what it would have said, by the tokens that it had seen."""

    said: dict[tuple[int, ...], list[int]]
    engine: Engine

    def step(self, batch: ForwardBatch) -> StepOutput:
        assert batch.window_pages is None, "its windows may be longer than its target's"
        output = super().step(batch)
        history = self.engine.scheduler.state.kv.table.tokens
        for at, token in zip(batch.logits_indices.tolist(), output.tokens.tolist(), strict=True):
            row = batch.req_pool_indices[np.searchsorted(batch.query_start_loc, at, side="right") - 1]
            seen = tuple(history[row, : batch.positions[at] + 1].tolist())
            self.said.setdefault(seen, []).append(token)
        return output


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drafted")


@pytest.fixture(params=["cpu", "sim"])
def place(request: pytest.FixtureRequest) -> Iterator[Device]:
    if request.param == "cpu":
        yield devicekit.get_device("cpu")
        return
    with simulation():
        register()
        yield devicekit.get_device("sim")
        unregister_backend("sim")


def checkpoint(folder: Path, architecture: str, seed: int = 1) -> Path:
    path = folder / f"{architecture}-{seed}"
    return path if path.exists() else write_example_checkpoint(path, seed=seed, architecture=architecture)


def drafted(folder: Path, device: Device, target: str, draft: str, config: EngineConfig) -> Engine:
    watched = WatchedDraft.load(checkpoint(folder, draft, 2), device)
    assert isinstance(watched, WatchedDraft)
    watched.said = {}
    engine = Engine(
        TransformersRunner.load(checkpoint(folder, target), device), device, config, draft=watched
    )
    watched.engine = engine
    return engine


def greedy(path: Path, prompt: list[int]) -> list[int]:
    model = own_model(path)
    model.generation_config.eos_token_id = None
    ids = torch.tensor([prompt])
    output = model.generate(
        ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=NEW_TOKENS,
        do_sample=False,
        pad_token_id=0,
    )
    return output[0, len(prompt) :].tolist()


@pytest.mark.parametrize(
    ("target", "draft", "settings"),
    [
        ("llama", "qwen3", {"max_batch_tokens": 9, "kv_tokens": 64, "conservativeness": 0.05}),
        ("llama", "qwen3", {"kv_tokens": 64, "host_kv_tokens": 256}),
        ("gemma2", "gemma2", {"max_batch_tokens": 9, "kv_tokens": 256, "window_kv_tokens": 160}),
    ],
    ids=["chunked and retracted", "with a host tier", "with a pool for windows"],
)
def test_both_say_what_they_would_say_alone(
    folder: Path, place: Device, target: str, draft: str, settings: dict[str, int]
) -> None:
    config = EngineConfig(page_size=4, max_running=3, checked=True, **settings)  # type: ignore[arg-type]
    engine = drafted(folder, place, target, draft, config)
    generations = engine.generate(PROMPTS, GREEDY)
    generations += engine.generate(PROMPTS[2:0:-1], GREEDY)
    assert sum(one.cached_tokens for one in generations) > 0
    assert bool(sum(one.retractions for one in generations)) == ("conservativeness" in settings)
    tier = engine.scheduler.state.kv.tier
    assert tier is None or (isinstance(tier, HostCacheManager) and tier.counters.loaded > 0)
    watched = engine.draft
    assert isinstance(watched, WatchedDraft)
    model = own_model(checkpoint(folder, draft, 2))
    for prompt, one in zip([*PROMPTS, *PROMPTS[2:0:-1]], generations, strict=True):
        assert one.tokens == greedy(checkpoint(folder, target), prompt)
        whole = [*prompt, *one.tokens[:-1]]
        with torch.no_grad():
            expected = model(torch.tensor([whole])).logits[0].argmax(-1).tolist()
        said = [watched.said[tuple(whole[:length])] for length in range(len(prompt), len(whole) + 1)]
        assert [set(one) for one in said] == [{token} for token in expected[len(prompt) - 1 :]]
    assert engine.audit().balanced


def test_its_bytes_are_planned_released_and_resumed_with_the_targets(folder: Path, place: Device) -> None:
    config = EngineConfig(page_size=4, max_running=3, kv_tokens=256)
    engine = drafted(folder, place, "llama", "qwen3", config)
    target, beside = engine.pools.kv, engine.pools.draft
    assert beside is not None
    assert (beside.num_pages, beside.page_size) == (target.num_pages, target.page_size)
    assert beside.nbytes > 0
    assert engine.plan.pool_bytes == target.nbytes + beside.nbytes
    first = engine.generate([SHARED], max_new_tokens=4, temperature=0)[0].tokens
    released = engine.release_memory("kv_cache")
    assert released.regions[0].bytes == target.nbytes + beside.nbytes
    engine.resume_memory("kv_cache")
    assert engine.generate([SHARED], max_new_tokens=4, temperature=0)[0].tokens == first


def test_updates_that_select_it_change_it_alone(folder: Path) -> None:
    engine = drafted(folder, devicekit.get_device("cpu"), "llama", "qwen3", EngineConfig(kv_tokens=256))
    before = engine.perform(ChecksumWeights("a"), ChecksumReply).tensors
    path = str(checkpoint(folder, "qwen3", 3))
    operation = UpdateWeightsFromDisk("u", selector=Selector.DRAFT, path=path)
    reply = engine.update_weights(operation)
    assert reply.success, reply.message
    after = engine.perform(ChecksumWeights("b"), ChecksumReply).tensors
    assert before == after
    assert engine.draft is not None
    stored = AutoModelForCausalLM.from_pretrained(path).state_dict()
    for name, weight in engine.draft.named_weights():
        assert torch.equal(weight, stored[name]), name


def test_a_draft_that_cannot_follow_is_refused(folder: Path) -> None:
    device = devicekit.get_device("cpu")
    target = TransformersRunner.load(checkpoint(folder, "llama"), device)
    recurrent = TransformersRunner.load(checkpoint(folder, "lfm2"), device)
    with pytest.raises(ConfigurationError, match="recurrent"):
        DraftedRunner(target, recurrent)
    mistral = TransformersRunner.load(checkpoint(folder, "mistral"), device)
    assert mistral.limits.window == 8
    assert DraftedRunner(mistral, target).limits.window is None, "the draft looks at what the target does not"
    assert DraftedRunner(mistral, mistral).limits.window == 8
