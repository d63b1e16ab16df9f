"""Regions under one tag are given back and taken again together."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from devicekit.engine import Engine, EngineConfig
from devicekit.memory.errors import MemoryReleased
from devicekit.scheduling.request import SamplingParams
from devicekit.weights.joint import JointRegion
from examples.checkpoints import write_example_checkpoint

GREEDY = SamplingParams(max_new_tokens=8, temperature=0.0, ignore_eos=True)


class Part:
    def __init__(self, size: int, *, fits: bool = True) -> None:
        self.size = size
        self.fits = fits
        self.mapped = True

    def release(self) -> int:
        self.mapped = False
        return self.size

    def resume(self) -> int:
        if not self.fits:
            raise MemoryError("no room")
        self.mapped = True
        return self.size


def test_bytes_are_those_of_all_parts() -> None:
    joint = JointRegion((Part(3), Part(4)))
    assert joint.release() == joint.resume() == 7


def test_if_one_part_does_not_fit_none_comes_back() -> None:
    parts = (Part(3), Part(4, fits=False))
    joint = JointRegion(parts)
    joint.release()
    with pytest.raises(MemoryError, match="no room"):
        joint.resume()
    assert [part.mapped for part in parts] == [False, False]
    parts[1].fits = True
    joint.resume()
    assert [part.mapped for part in parts] == [True, True]


def test_states_go_and_come_with_the_keys_and_values(tmp_path: Path) -> None:
    path = write_example_checkpoint(tmp_path, seed=1, architecture="lfm2")
    engine = Engine.open(path, "cpu", config=EngineConfig(max_running=2, kv_tokens=64, checked=True))
    (before,) = engine.generate([[5, 6, 7]], GREEDY)
    assert engine.states is not None
    reply = engine.release_memory("kv_cache")
    assert reply.success
    assert sum(region.bytes or 0 for region in reply.regions) == engine.plan.pool_bytes + engine.states.nbytes
    with pytest.raises(MemoryReleased):
        engine.states.copy(torch.tensor([1]), torch.tensor([2]))
    assert engine.resume_memory("kv_cache").success
    (after,) = engine.generate([[5, 6, 7]], GREEDY)
    assert after.tokens == before.tokens
