"""The example engine that was moved off ``torch.cuda``: how it was moved, and that it says the same everywhere."""

from __future__ import annotations

from pathlib import Path

import pytest

import devicekit
from devicekit.devtools.audit import audit
from devicekit.testing import MIB, SimConfig
from examples.port.after.config import EngineConfig
from examples.port.after.engine import Engine
from examples.port.steps import FOLDER, STEPS, diffs

PROMPTS = [[1, 2, 3], [200] * 17, [5, 9, 33, 7, 7, 1, 2, 8], [4], [77, 3]]
NEW = 6
SMALL = SimConfig(capacity=64 * MIB)


def config(*, graphs: bool = True, max_blocks: int | None = 40) -> EngineConfig:
    return EngineConfig(max_blocks=max_blocks, graphs=graphs, memory_share=0.5)


@pytest.fixture(scope="module")
def one_by_one() -> list[list[int]]:
    """Each token computed alone, from the whole of what is before it, on the host."""
    with devicekit.use("cpu"):
        engine = Engine(config())
        outputs: list[list[int]] = [[] for _ in PROMPTS]
        for prompt, output in zip(PROMPTS, outputs, strict=True):
            for _ in range(NEW):
                output += engine.generate([prompt + output], 1)[0]
    return outputs


@pytest.mark.parametrize("name", STEPS)
def test_the_steps_are_the_committed_ones(name: str, tmp_path: Path) -> None:
    text = diffs(tmp_path)[STEPS.index(name)]
    assert text == (FOLDER / name).read_text(), "python -m examples.port writes it again"


def test_the_audit_finds_nothing_in_what_came_out() -> None:
    report = audit([FOLDER / "after"])
    assert list(report.new) == []


def test_the_engine_before_names_its_vendor_and_the_audit_leaves_three_places_to_a_person() -> None:
    found = audit([FOLDER / "before"]).new
    assert len(found) > 30
    left = {line for line in (FOLDER / "audit.diff").read_text().splitlines() if line.startswith(" ")}
    assert {line.strip() for line in left if "torch.cuda" in line} == {
        "graph = torch.cuda.CUDAGraph()",
        "with torch.cuda.graph(graph, self._pool):",
        "allocated = torch.cuda.memory_allocated() / 2**20",  # it may be unknown now
    }


def test_tokens_on_the_host_are_those_of_one_by_one(one_by_one: list[list[int]]) -> None:
    with devicekit.use("cpu"):
        engine = Engine(config())
        assert engine.generate(PROMPTS, NEW) == one_by_one
        assert all(took > 0 for took in engine.timer.milliseconds())


@pytest.mark.parametrize("sim_machine", [SMALL], indirect=True)
@pytest.mark.parametrize("graphs", [True, False], ids=["graphs", "eager"])
def test_tokens_on_an_accelerator_are_those_of_the_host(
    one_by_one: list[list[int]], sim_device: devicekit.Device, graphs: bool
) -> None:
    with devicekit.use(sim_device):
        engine = Engine(config(graphs=graphs, max_blocks=None))
        assert engine.generate(PROMPTS, NEW) == one_by_one
        assert engine.runner.blocks.num_free > 40  # as many as the memory has room for
        assert all(took > 0 for took in engine.timer.milliseconds())


@pytest.mark.parametrize("sim_machine", [SMALL], indirect=True)
def test_with_few_blocks_sequences_are_put_back_and_say_the_same(
    one_by_one: list[list[int]], sim_device: devicekit.Device
) -> None:
    with devicekit.use(sim_device):
        assert Engine(config(max_blocks=9)).generate(PROMPTS, NEW) == one_by_one
