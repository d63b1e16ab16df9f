"""The host tier: the same tokens with it and without, and copies that nobody may overtake."""

from __future__ import annotations

import random

import pytest

from devicekit.contract.errors import ConfigurationError
from devicekit.memory.host_kv import HostKVPool
from devicekit.scheduling.kv_cache.host_cache import attach_host_cache
from devicekit.scheduling.messages import (
    Abort,
    AbortReply,
    Blocker,
    Flush,
    FlushReply,
    Pause,
    PauseMode,
    PauseReply,
    UpdateReply,
)
from devicekit.weights.operations import MemoryReply, ReleaseMemory, ResumeMemory, UpdateWeightsFromTensor
from tests.hash_runner import expected, make_weights
from tests.scheduling.conftest import MakeRig
from tests.scheduling.rig import LateCopier, Rig

A, B = list(range(1, 30)), list(range(100, 160))


def fill(rig: Rig, prompt: list[int], tokens: int = 4) -> str:
    identity = rig.add(prompt, tokens)
    rig.run()
    return identity


def test_what_the_device_forgot_is_fetched_from_the_host(new_rig: MakeRig) -> None:
    for host_pages, cached in ((0, 8), (64, 28)):
        rig = new_rig(num_pages=18, host_pages=host_pages)
        fill(rig, A)
        fill(rig, B)  # pushes most of A out of the device's cache
        again = fill(rig, A)
        assert rig.last[again].cached_tokens == cached
    assert rig.tier is not None
    assert rig.tier.counters.loaded > 0
    assert rig.outputs[again] == expected(A, 4, rig.salt)
    rig.check()


def test_the_device_and_the_host_each_know_a_part(new_rig: MakeRig) -> None:
    rig = new_rig(num_pages=24, host_pages=64)
    fill(rig, [*A, *B])
    prefix = rig.scheduler.state.kv.prefix
    assert prefix is not None
    prefix.evict(10)
    again = fill(rig, [*A, *B, 7])
    assert rig.last[again].cached_tokens == 88
    assert rig.tier is not None
    assert rig.tier.counters.loaded == 9
    assert rig.outputs[again] == expected([*A, *B, 7], 4, rig.salt)


@pytest.mark.parametrize("late", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_tokens_are_the_same_with_and_without_a_tier(new_rig: MakeRig, late: bool, seed: int) -> None:
    rng = random.Random(seed)
    stems = [[rng.randrange(1, 900) for _ in range(rng.randint(5, 40))] for _ in range(4)]
    copier = LateCopier() if late else None
    rig = new_rig(num_pages=20, host_pages=rng.choice([40, 100]), copier=copier, max_batch_tokens=24)
    prompts = {}
    for number in range(40):
        prompt = [*rng.choice(stems), *(rng.randrange(1, 900) for _ in range(rng.randint(0, 9)))]
        prompts[rig.add(prompt, rng.randint(1, 9))] = prompt
        for _ in range(rng.randint(0, 4)):
            rig.step()
            rig.check()
        if copier is not None and rng.random() < 0.5:
            copier.finish(rng.randint(0, 3))
        if rng.random() < 0.1:
            rig.do(Abort(f"a{number}", rng.choice(list(prompts))), AbortReply)
    for _ in range(3000):
        if not rig.scheduler.state.requests:
            break
        rig.step()
        if copier is not None and rng.random() < 0.3:
            copier.finish(1)
    for identity, prompt in prompts.items():
        got = rig.outputs[identity]
        assert got == expected(prompt, len(got), rig.salt), identity
    assert rig.tier is not None
    if copier is not None:
        copier.finish()
        rig.step()
    assert rig.tier.counters.loaded > 0
    assert rig.do(Flush("f"), FlushReply).success
    rig.check()
    assert rig.tier.tree.total == 0


def test_copies_under_way_block_by_name_and_retire_while_paused(new_rig: MakeRig) -> None:
    copier = LateCopier()
    rig = new_rig(host_pages=64, copier=copier)
    fill(rig, A)
    rig.step()
    # One for the prompt, one for the page that the output filled.
    assert rig.scheduler.blockers() == (Blocker("host_copies", 2),)
    assert rig.do(Flush("now"), FlushReply).blockers == (Blocker("host_copies", 2),)
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    rig.post(Flush("later", 5.0))
    rig.step()
    assert "later" not in rig.replies
    copier.finish()
    rig.step()
    assert rig.replies["later"].success


def test_what_is_being_copied_is_neither_evicted_nor_overwritten(new_rig: MakeRig) -> None:
    copier = LateCopier()
    rig = new_rig(num_pages=18, host_pages=64, copier=copier)
    fill(rig, A)
    locked = rig.scheduler.state.kv.prefix
    assert locked is not None
    assert locked.protected == 8
    assert locked.evict(100) == 0
    waits = rig.add(B, 4)
    rig.step(5)
    assert waits not in rig.outputs, "there is no room for it until the copy is done"
    copier.finish()
    rig.run()
    copier.finish()
    rig.step()
    again = rig.add(A, 4)
    rig.run()
    assert rig.outputs[again] == expected(A, 4, rig.salt)
    rig.check()


def test_a_request_that_needs_their_pages_waits_for_the_copies_rather_than_fail(new_rig: MakeRig) -> None:
    rig = new_rig(num_pages=12, host_pages=64, copier=LateCopier())
    fill(rig, A)
    request = rig.add(range(500, 508), 24)  # two pages now, eight in the end, of the four that are left
    rig.run()
    assert rig.last[request].retractions == 0
    assert rig.outputs[request] == expected(range(500, 508), 24, rig.salt)


def test_a_device_that_loses_its_copies_loses_the_tier_and_goes_on(
    new_rig: MakeRig, caplog: pytest.LogCaptureFixture
) -> None:
    rig = new_rig(num_pages=18, host_pages=64, copier=LateCopier())
    fill(rig, A)
    assert rig.tier is not None
    event = rig.tier.copies[0].event

    def lost() -> bool:
        raise RuntimeError("event is gone")

    event.query = lost  # type: ignore[method-assign, union-attr]
    rig.step()
    assert rig.scheduler.blockers() == ()
    assert "event is gone" in caplog.text
    fill(rig, B)
    again = fill(rig, A)
    assert rig.outputs[again] == expected(A, 4, rig.salt)
    assert rig.tier.counters.loaded == 0
    rig.check()


def test_copies_are_objects_with_an_owner_that_can_be_waited_for(new_rig: MakeRig) -> None:
    rig = new_rig(host_pages=64, copier=LateCopier())
    owner = fill(rig, A)
    assert rig.tier is not None
    copy, _ = rig.tier.copies
    assert (copy.owner, copy.pages, copy.done()) == (owner, 7, False)
    copy.wait()
    assert copy.done()
    rig.step()
    assert rig.tier.copies == ()


def test_prefixes_of_old_weights_are_not_fetched(new_rig: MakeRig) -> None:
    rig = new_rig(num_pages=18, host_pages=64)
    fill(rig, A)
    operation = UpdateWeightsFromTensor("u", tensors=make_weights(5), flush_cache=False)
    rig.do(operation, UpdateReply)
    again = fill(rig, A)
    assert rig.last[again].cached_tokens == 0
    assert rig.outputs[again] == expected(A, 4, rig.salt)


def test_a_full_host_keeps_what_was_used_last_and_skips_what_does_not_fit(new_rig: MakeRig) -> None:
    rig = new_rig(num_pages=40, host_pages=5)
    fill(rig, B)
    assert rig.tier is not None
    assert rig.tier.counters.stored == 5
    assert rig.tier.counters.skipped >= 10
    fill(rig, A)
    assert rig.tier.tree.total == 5
    rig.check()


def test_a_copy_that_fails_costs_a_computation_and_nothing_else(
    new_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    rig = new_rig(num_pages=18, host_pages=64)
    fill(rig, A)
    fill(rig, B)

    def broken(*arguments: object, **options: object) -> object:
        raise RuntimeError("no more staging memory")

    assert rig.tier is not None
    monkeypatch.setattr(type(rig.tier.pool.copier), "begin", broken)
    again = fill(rig, A)
    assert rig.last[again].cached_tokens == 8, "what the device still has"
    assert rig.outputs[again] == expected(A, 4, rig.salt)
    rig.check()
    assert "could not be loaded" in caplog.text


def test_host_memory_can_be_released_and_resumed(new_rig: MakeRig) -> None:
    rig = new_rig(num_pages=18, host_pages=64)
    fill(rig, A)
    reply = rig.do(ReleaseMemory("r", ("host_kv", "kv_cache")), MemoryReply)
    (region,) = [one for one in reply.regions if one.tag == "host_kv"]
    assert (region.released, region.bytes) == (True, 65 * 4 * 4 * 8)
    given_back = {one.tag: one.bytes for one in reply.regions}
    for tag in ("host_kv", "kv_cache"):  # first the one that copies from the other
        resumed = rig.do(ResumeMemory(f"resume {tag}", (tag,)), MemoryReply)
        assert resumed.success
        assert {one.tag: one.bytes for one in resumed.regions if one.changed} == {tag: given_back[tag]}
    fill(rig, B)
    again = fill(rig, A)
    assert rig.outputs[again] == expected(A, 4, rig.salt)
    rig.check()


def test_a_backend_whose_copies_do_not_overlap_says_so(new_rig: MakeRig) -> None:
    rig = new_rig(host_pages=64)
    assert rig.tier is not None
    copier = rig.tier.pool.copier
    assert not copier.overlaps
    assert copier.reason is not None
    assert "lacks current_stream" in copier.reason
    fill(rig, A)
    assert rig.tier.copies == ()
    assert rig.do(Flush("f"), FlushReply).success


def test_a_tier_needs_a_prefix_cache(new_rig: MakeRig) -> None:
    rig = new_rig(prefix_caching=False)
    pool = HostKVPool(rig.weights.store.device, rig.runner.pool, 8)
    with pytest.raises(ConfigurationError, match="prefix caching"):
        attach_host_cache(rig.scheduler, pool)
