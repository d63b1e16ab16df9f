"""Ranks that hold a model together say what one process says, with a part of its weights and keys each."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from devicekit import get_device
from devicekit.engine import Engine, EngineConfig
from devicekit.runners import TransformersRunner
from devicekit.runners.errors import UnsupportedModel
from devicekit.runners.sharding import Split
from devicekit.runners.tensor_parallel import TESTED_TRANSFORMERS
from tests.scheduling.processes import Worlds
from tests.tensor_parallel import scenarios
from tests.tensor_parallel.conftest import Written
from tests.tensor_parallel.models import MODELS, PARTLY
from tests.tensor_parallel.scenarios import KV_TOKENS, Seen

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

EXPERTS = ("mixtral", "qwen3_moe", "gpt_oss")


def compare(worlds: Worlds, path: str, ranks: int, **config: object) -> tuple[list[Seen], Engine]:
    whole = Engine.open(path, "cpu", config=EngineConfig(kv_tokens=KV_TOKENS))
    seen: list[Seen] = worlds(ranks).play(scenarios.tokens, path, config)  # type: ignore[assignment]
    assert seen[0].said["tokens"] == scenarios.generate(whole)
    return seen, whole


@pytest.mark.parametrize("model", [name for name in MODELS if name not in PARTLY])
def test_two_ranks_say_what_one_does_with_half_the_weights_each(
    worlds: Worlds, written: Written, model: str
) -> None:
    seen, whole = compare(worlds, written(model), 2)
    shared = model not in ("one key head", "three key heads")  # whose key heads are on both
    for one in seen:
        assert whole.weight_bytes / 2 <= one.weight_bytes < whole.weight_bytes * (0.51 if shared else 0.55)
        assert one.pages == whole.plan.num_pages
        assert one.pool_bytes == whole.plan.pool_bytes // (2 if shared else 1)


@pytest.mark.parametrize("model", EXPERTS)
def test_two_ranks_with_whole_experts_say_what_one_does(worlds: Worlds, written: Written, model: str) -> None:
    seen, whole = compare(worlds, written(model), 2, expert_parallel=True)
    assert all(one.weight_bytes < whole.weight_bytes * 0.6 for one in seen)


@pytest.mark.parametrize("model", PARTLY)
def test_a_plan_that_leaves_attention_whole_is_followed_only_if_asked_for(
    worlds: Worlds, written: Written, model: str
) -> None:
    path = written(model)
    told = worlds(2).play(scenarios.refused, path, {})
    assert told[0] == told[1]
    assert "leaves its attention whole: each of 2 ranks holds" in str(told[0])
    assert "4 of 4 query heads and 2 of 2 key heads" in str(told[0])
    seen, whole = compare(worlds, path, 2, split_partly=True)
    assert all(one.weight_bytes < whole.weight_bytes for one in seen)
    assert all(one.pool_bytes == whole.plan.pool_bytes for one in seen)


@pytest.mark.parametrize(
    ("model", "config", "words"),
    [
        ("gpt2", {}, "GPT2LMHeadModel has no plan in transformers by which it could be split"),
        ("llama", {"expert_parallel": True}, "has no plan in transformers by which experts could be given"),
        ("qwen3_next", {}, "has recurrent layers, which ranks cannot hold together here"),
        ("three heads", {}, "has 3 heads, which 2 ranks cannot share"),
        (
            "odd width",
            {},
            "has 129 of what 2 ranks would have to share evenly in model.layers.0.mlp.gate_proj",
        ),
    ],
)
def test_what_ranks_cannot_hold_together_is_refused_by_name_on_all(
    worlds: Worlds, tmp_path: Path, model: str, config: dict[str, object], words: str
) -> None:
    from devicekit.devtools.reference import write_model
    from examples.checkpoints import write_example_checkpoint

    odd = {"three heads": {"num_attention_heads": 3, "head_dim": 16}, "odd width": {"intermediate_size": 129}}
    if model in odd:
        keys = {"num_key_value_heads": 1, **odd[model]}
        write_model(tmp_path, seed=1, architecture="qwen3", settings=keys)
    else:
        write_example_checkpoint(tmp_path, seed=1, architecture=model)
    told = worlds(2).play(scenarios.refused, str(tmp_path), config)
    assert told[0] == told[1]
    assert words in str(told[0])


@pytest.mark.parametrize("release", ["5.21.1", "5.25.0", "5.25.0.dev0", "6.0.0"])
def test_a_release_whose_plans_nobody_has_tried_is_refused_by_name(
    written: Written, monkeypatch: pytest.MonkeyPatch, release: str
) -> None:
    monkeypatch.setattr("devicekit.runners.tensor_parallel.version", lambda name: release)
    with pytest.raises(UnsupportedModel) as refused:
        TransformersRunner.load(written("llama"), get_device("cpu"), split=Split(2))
    assert f"cannot be split by the plans of transformers {release}" in str(refused.value)
    assert "pip install 'transformers>=5.22,<5.25'" in str(refused.value)


def test_the_extra_brings_what_is_not_refused() -> None:
    (major, first), (_, last) = TESTED_TRANSFORMERS
    extras = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    named = [Requirement(one) for one in extras["optional-dependencies"]["tp"]]
    [accepted] = [one.specifier for one in named if one.name == "transformers"]
    assert f"{major}.{first}.0" in accepted
    assert f"{major}.{last}.9" in accepted
    assert f"{major}.{first - 1}.9" not in accepted
    assert f"{major}.{last + 1}.0" not in accepted


@pytest.mark.thorough
@pytest.mark.parametrize("model", [name for name in MODELS if name not in (*PARTLY, "three key heads")])
def test_four_ranks_say_what_one_does(worlds: Worlds, written: Written, model: str) -> None:
    seen, whole = compare(worlds, written(model), 4)
    assert all(one.weight_bytes < whole.weight_bytes * 0.285 for one in seen)


@pytest.mark.thorough
@pytest.mark.parametrize("model", EXPERTS)
def test_four_ranks_with_whole_experts_say_what_one_does(
    worlds: Worlds, written: Written, model: str
) -> None:
    compare(worlds, written(model), 4, expert_parallel=True)
