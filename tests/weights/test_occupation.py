"""Releasing and resuming memory: that it is really gone, that nothing runs without it, and what comes back."""

from __future__ import annotations

import itertools
import random

import pytest
import torch
from torch.multiprocessing.reductions import StorageWeakRef

from devicekit.coordination import SingleRank
from devicekit.memory.errors import MemoryReleased
from devicekit.release import ReleasePoint
from devicekit.scheduling.errors import RanksFailed
from devicekit.scheduling.messages import (
    Blocker,
    Continue,
    Flush,
    FlushReply,
    Pause,
    PauseMode,
    PauseReply,
    Refusal,
    UpdateReply,
)
from devicekit.weights.occupation import MemoryTag
from devicekit.weights.operations import (
    ChecksumReply,
    ChecksumWeights,
    GetWeights,
    MemoryReply,
    RegionReport,
    ReleaseMemory,
    ResumeMemory,
    UpdateWeightsFromTensor,
    WeightsReply,
)
from tests.hash_runner import expected, make_weights, salt_of
from tests.scheduling.conftest import MakeRig
from tests.scheduling.rig import Rig
from tests.seeds import drawn_seed

NEW = make_weights(5)
WEIGHT_BYTES = 8 * 4 * 4 + 6 * 4 + 4 * 4 * 2
_ids = itertools.count()
_SEED = drawn_seed("DEVICEKIT_TEST_OCCUPATION_SEED")


def release(rig: Rig, *tags: str, backup: bool = False) -> MemoryReply:
    return rig.do(ReleaseMemory(f"release-{next(_ids)}", tags, backup), MemoryReply)


def resume(rig: Rig, *tags: str) -> MemoryReply:
    return rig.do(ResumeMemory(f"resume-{next(_ids)}", tags), MemoryReply)


def report(reply: MemoryReply, tag: str) -> RegionReport:
    return next(one for one in reply.regions if one.tag == tag)


def test_the_memory_is_really_gone_and_counted(rig: Rig) -> None:
    pool, weights = rig.runner.pool, rig.runner.weights
    buffers = [pool.key(0), pool.value(0), pool.key(1), pool.value(1)]
    storages = [StorageWeakRef(one.untyped_storage()) for one in (*weights.values(), *buffers)]
    buffers.clear()
    assert not any(one.expired() for one in storages)
    reply = release(rig)
    assert reply.success
    assert report(reply, "weights") == RegionReport("weights", True, True, WEIGHT_BYTES)
    assert report(reply, "kv_cache") == RegionReport("kv_cache", True, True, 65 * 4 * 4 * 8)
    assert report(reply, "graphs") == RegionReport("graphs", False, False, present=False)
    assert all(one.expired() for one in storages)
    assert reply.release is not None
    assert (reply.release.point, reply.release.emptied) == (ReleasePoint.MEMORY_OCCUPATION, True)


def test_without_a_backup_weights_must_be_written_before_anything_is_generated(rig: Rig) -> None:
    release(rig)
    request = rig.add([1, 2, 3], 5)
    reply = resume(rig)
    assert reply.untrusted == 3
    rig.step(5)
    assert not rig.outputs
    rig.do(UpdateWeightsFromTensor("u", tensors=NEW), UpdateReply)
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 5, salt_of(NEW))


def test_with_a_backup_everything_is_as_it_was(rig: Rig) -> None:
    salt = rig.salt
    parameters = dict(rig.runner.weights)
    reply = release(rig, "weights", backup=True)
    assert report(reply, "weights").backup_bytes == WEIGHT_BYTES
    resumed = resume(rig, "weights")
    assert resumed.untrusted == 0
    assert report(resumed, "weights") == RegionReport("weights", False, True, WEIGHT_BYTES)
    assert rig.salt == salt
    assert all(rig.runner.weights[name] is one for name, one in parameters.items())
    request = rig.add([1, 2, 3], 5)
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 5, salt)


def test_weights_keep_their_shape_type_and_order_of_elements(rig: Rig) -> None:
    turned = torch.nn.Parameter(torch.arange(32.0).view(4, 8).t(), requires_grad=False)
    rig.runner.weights["embed.weight"] = turned
    values = turned.detach().clone()
    release(rig, "weights", backup=True)
    resume(rig, "weights")
    assert turned.stride() == (1, 8)
    assert torch.equal(turned, values)


def test_waking_up_in_two_stages(rig: Rig) -> None:
    rig.add(range(1, 20))
    rig.run()
    rig.do(Pause("p"), PauseReply)
    release(rig)
    resume(rig, "weights")
    # The KV cache is still gone: an update that flushes must not touch it.
    assert rig.do(UpdateWeightsFromTensor("u", tensors=NEW), UpdateReply).success
    assert rig.do(Continue("early"), PauseReply).refusal is Refusal.CONFLICT
    resume(rig, "kv_cache", "graphs")
    assert rig.do(Continue("c"), PauseReply).success
    request = rig.add(range(1, 20))
    rig.run()
    assert rig.outputs[request] == expected(range(1, 20), 8, salt_of(NEW))


def test_the_cache_is_flushed_before_its_memory_goes(rig: Rig) -> None:
    rig.add(range(1, 20))
    rig.run()
    release(rig, "kv_cache")
    prefix = rig.scheduler.state.kv.prefix
    assert prefix is not None
    assert prefix.total == 0
    resume(rig, "kv_cache")
    request = rig.add(range(1, 20))
    rig.run()
    assert rig.last[request].cached_tokens == 0
    assert rig.outputs[request] == expected(range(1, 20), 8, rig.salt)


def test_the_padding_slot_is_zero_again_after_resuming(rig: Rig) -> None:
    release(rig, "kv_cache")
    resume(rig, "kv_cache")
    assert rig.runner.pool.key(0)[0].item() == rig.runner.pool.value(1)[0].item() == 0


def test_both_are_states_and_repeating_changes_nothing(rig: Rig) -> None:
    assert not report(resume(rig, "weights"), "weights").changed
    release(rig, "weights")
    again = release(rig, "weights")
    assert again.success
    assert report(again, "weights") == RegionReport("weights", True, False, 0)
    resume(rig, "weights")
    twice = resume(rig, "weights")
    assert (twice.success, report(twice, "weights").changed) == (True, False)


@pytest.mark.parametrize("draw", range(12))
def test_each_report_says_what_became_of_its_region_whatever_came_before(rig: Rig, draw: int) -> None:
    """Those that this engine does not have among them, of either verb; in the order in which it was done."""
    rng = random.Random(f"{_SEED} {draw}")
    sizes = {MemoryTag.WEIGHTS: WEIGHT_BYTES, MemoryTag.KV_CACHE: 65 * 4 * 4 * 8}
    gone: set[MemoryTag] = set()
    for _ in range(12):
        releasing = rng.random() < 0.5
        tags = rng.sample([*MemoryTag], rng.randrange(1, len(MemoryTag) + 1))
        reply = (release if releasing else resume)(rig, *(one.value for one in tags))
        changed = {one for one in tags if one in sizes and (one in gone) is not releasing}
        gone = gone | changed if releasing else gone - changed
        order = [one for one in (MemoryTag if releasing else reversed(MemoryTag)) if one in tags]
        assert reply.regions == tuple(
            RegionReport(one.value, one in gone, one in changed, sizes[one] if one in changed else 0)
            if one in sizes
            else RegionReport(one.value, False, False, present=False)
            for one in order
        ), (_SEED, draw)
        assert reply.success


class _OneFails(SingleRank):
    """Another rank fails at the nth thing that all do, and as often as it is told in a row."""

    left = times = 0

    def ready(self, done: bool, error: Exception | None = None) -> bool:
        self.left -= 1
        if -self.times < self.left <= 0:
            raise RanksFailed({1: "no room there"})
        return super().ready(done, error)


@pytest.mark.parametrize("backup", [False, True])
@pytest.mark.parametrize("releasing", [True, False], ids=["release", "resume"])
def test_wherever_another_rank_fails_it_is_said_and_all_memory_comes_back(
    new_rig: MakeRig, releasing: bool, backup: bool
) -> None:
    """What one rank gave back is released for all, until every rank has it again."""
    failed = 0
    for at in range(1, 20):
        rig = new_rig(coordinator=(ranks := _OneFails()))
        if not releasing:
            release(rig, backup=backup)
        ranks.left, ranks.times = at, 1 if releasing else 2  # resuming tries again
        reply = release(rig, backup=backup) if releasing else resume(rig)
        if ranks.left > 0:
            break
        request = rig.add([1, 2, 3], 5)
        if not reply.success:
            failed += 1
            assert "rank 1: no room there" in reply.message
            assert (reply.refusal, rig.outputs.get(request)) == (Refusal.FAILED, None), at
        told = {one.tag for one in reply.regions if one.released}
        resumed = resume(rig)
        assert resumed.success, (at, resumed.message)
        assert told <= {one.tag for one in resumed.regions if one.changed}, at
        assert not any(one.released for one in resumed.regions), at
        if resumed.untrusted:
            rig.do(UpdateWeightsFromTensor("u", tensors=make_weights(1)), UpdateReply)
        rig.run()
        assert rig.outputs[request] == expected([1, 2, 3], 5, rig.salt), at
        rig.check()
    assert failed > 1


def test_an_unknown_tag_is_invalid_and_nothing_is_released(rig: Rig) -> None:
    for reply in (release(rig, "weights", "weigths"), resume(rig, "weigths")):
        assert reply.refusal is Refusal.INVALID
        assert "'weigths'" in reply.message
    assert rig.weights.occupation.released == frozenset()


def test_a_busy_engine_refuses_with_its_blockers_and_changes_nothing(rig: Rig) -> None:
    rig.add([1, 2, 3], 20)
    rig.step(2)
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    before = rig.snapshot()
    reply = release(rig)
    assert (reply.refusal, reply.blockers) == (Refusal.BUSY, (Blocker("running", 1),))
    assert rig.snapshot() == before
    assert rig.weights.occupation.released == frozenset()
    rig.do(Continue("c"), PauseReply)
    rig.run()


def test_waiting_requests_outlive_a_release(rig: Rig) -> None:
    salt = rig.salt
    request = rig.add([1, 2, 3], 8)
    rig.step(3)
    rig.do(Pause("p", PauseMode.RETRACT), PauseReply)
    assert release(rig, backup=True).success
    resume(rig)
    rig.do(Continue("c"), PauseReply)
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 8, salt)


def test_whatever_touches_released_weights_is_refused_clearly(rig: Rig) -> None:
    release(rig, "weights")
    for operation, kind in (
        (UpdateWeightsFromTensor("u", tensors=NEW), UpdateReply),
        (GetWeights("g", ("head.weight",)), WeightsReply),
        (ChecksumWeights("s"), ChecksumReply),
    ):
        reply = rig.do(operation, kind)
        assert reply.refusal is Refusal.CONFLICT
        assert "weights is released" in reply.message
    assert rig.do(Flush("f"), FlushReply).success


def test_requests_wait_while_anything_is_released(rig: Rig) -> None:
    release(rig, "kv_cache")
    request = rig.add([1, 2, 3], 5)
    steps = rig.runner.steps
    rig.step(5)
    assert rig.runner.steps == steps
    resume(rig)
    rig.run()
    assert rig.outputs[request] == expected([1, 2, 3], 5, rig.salt)


def test_using_a_released_pool_directly_is_a_clear_error(rig: Rig) -> None:
    release(rig, "kv_cache")
    with pytest.raises(MemoryReleased, match="resume it first"):
        rig.runner.pool.key(0)
    with pytest.raises(MemoryReleased):
        rig.runner.pool.read(0, torch.tensor([1]))


def test_a_region_that_cannot_come_back_stays_released_and_can_be_tried_again(
    new_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = new_rig()
    release(rig)
    allocate = rig.runner.pool._allocate_all

    def full() -> object:
        raise torch.OutOfMemoryError("somebody else has it")

    monkeypatch.setattr(rig.runner.pool, "_allocate_all", full)
    reply = resume(rig)
    assert reply.refusal is Refusal.FAILED
    assert "OutOfMemoryError" in reply.message
    assert report(reply, "weights") == RegionReport("weights", False, True, WEIGHT_BYTES)
    assert report(reply, "kv_cache").released
    assert rig.releases.counters[ReleasePoint.OUT_OF_MEMORY].emptied == 1
    monkeypatch.setattr(rig.runner.pool, "_allocate_all", allocate)
    assert report(resume(rig), "kv_cache").changed
    rig.do(UpdateWeightsFromTensor("u", tensors=NEW), UpdateReply)
    rig.add([1, 2, 3])
    rig.run()
