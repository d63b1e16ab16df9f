"""The control verbs on a device with a caching allocator, streams and copies that take time: bytes are counted."""

from __future__ import annotations

import json
import random
from collections.abc import Iterator

import pytest
import torch

from devicekit.device import Device, get_device
from devicekit.memory.copies import StreamCopier
from devicekit.registry import unregister_backend
from devicekit.release import ReleasePoint
from devicekit.scheduling.messages import (
    Blocker,
    Continue,
    Flush,
    FlushReply,
    Pause,
    PauseMode,
    PauseReply,
    Refusal,
    Reply,
    UpdateOutcome,
    UpdateReply,
)
from devicekit.scheduling.request import FinishKind
from devicekit.testing import Fault, LoseDevice, Raise, SimConfig, Simulator, simulation
from devicekit.testing.sim_backend import register
from devicekit.weights.handles import handle_to_json
from devicekit.weights.occupation import MemoryTag
from devicekit.weights.operations import (
    ChecksumReply,
    ChecksumWeights,
    MemoryReply,
    ReleaseMemory,
    ResumeMemory,
    UpdateWeightsFromIPC,
    UpdateWeightsFromTensor,
)
from tests.hash_runner import expected, make_weights, salt_of
from tests.scheduling.rig import Rig, make_rig

NEW = make_weights(5)
A, B = list(range(1, 30)), list(range(100, 160))


@pytest.fixture
def machine(request: pytest.FixtureRequest) -> Iterator[Simulator]:
    with simulation(getattr(request, "param", SimConfig())) as simulator:
        register()
        yield simulator
        unregister_backend("sim")


@pytest.fixture
def device(machine: Simulator) -> Device:
    return get_device("sim")


@pytest.fixture
def rig(device: Device) -> Rig:
    return make_rig(device, num_pages=2000)


def run(rig: Rig, prompt: list[int], tokens: int = 4) -> str:
    identity = rig.add(prompt, tokens)
    rig.run()
    return identity


def test_releasing_lowers_allocated_memory_by_what_it_says_and_gives_it_to_the_driver(
    rig: Rig, device: Device
) -> None:
    run(rig, A)
    before = device.memory_stats()
    reply = rig.do(ReleaseMemory("r", backup_weights=True), MemoryReply)
    after = device.memory_stats()
    sizes = {one.tag: one.bytes for one in reply.regions}
    assert sizes["kv_cache"] == 2001 * 4 * 4 * 8
    assert before.allocated is not None
    assert after.allocated is not None
    # The allocator rounds up, so at least what was said.
    assert before.allocated - after.allocated >= sum(size or 0 for size in sizes.values())
    assert reply.release is not None
    assert (reply.release.released or 0) > 0
    assert reply.release.reserved_after == after.reserved
    salt = salt_of(make_weights(0))
    rig.do(ResumeMemory("s"), MemoryReply)
    assert device.memory_stats().allocated == before.allocated
    again = run(rig, A)
    assert rig.outputs[again] == expected(A, 4, salt)


def test_continue_reports_reserved_memory_before_and_after(
    rig: Rig, device: Device, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    run(rig, A)
    rig.do(Pause("p", PauseMode.IN_PLACE), PauseReply)
    reply = rig.do(Continue("c"), PauseReply)
    assert reply.release is not None
    assert reply.release.reserved_before is not None
    assert reply.release.reserved_after == device.memory_stats().reserved
    assert reply.release.reserved_after <= reply.release.reserved_before
    # Once for each pause that ends, at a level that is off by default.
    [line] = [one for one in caplog.records if one.name == "devicekit.scheduling.verbs.pause"]
    assert line.levelname == "INFO"
    assert line.message.endswith(f"gave back {reply.release.released} bytes")


def test_weights_come_by_tensor_and_by_handle_and_digests_are_the_hosts(rig: Rig, device: Device) -> None:
    host = rig.do(ChecksumWeights("a"), ChecksumReply)
    rig.do(UpdateWeightsFromTensor("u", tensors=NEW), UpdateReply)
    there = {name: one.to(device.torch_device) for name, one in make_weights(0).items()}
    handles = {name: device.export_ipc(one) for name, one in there.items()}
    assert rig.do(UpdateWeightsFromIPC("i", handles=handles), UpdateReply).success
    assert rig.do(ChecksumWeights("b"), ChecksumReply).tensors == host.tensors
    rig.do(UpdateWeightsFromTensor("v", tensors=NEW), UpdateReply)
    told = {name: json.loads(json.dumps(handle_to_json(one))) for name, one in handles.items()}
    assert rig.do(UpdateWeightsFromIPC("j", handles=told), UpdateReply).success
    assert rig.do(ChecksumWeights("c"), ChecksumReply).tensors == host.tensors


def _updates_under_faults(
    rig: Rig, device: Device, machine: Simulator, operation: str
) -> Iterator[tuple[int, UpdateReply]]:
    """An update from the device's own memory for each use of ``operation`` within it, which fails there."""
    for nth in range(1, 50):
        given = {name: one.to(device.torch_device) for name, one in make_weights(nth).items()}
        with machine.inject(Fault(operation, Raise(lambda: RuntimeError("a copy broke off")), nth)) as script:
            reply = rig.do(UpdateWeightsFromTensor(f"u{nth}", tensors=given, flush_cache=False), UpdateReply)
            struck = bool(script.hits)
        if not struck:
            assert reply.success
            return
        yield nth, reply
    raise AssertionError("an update has fewer steps than that")


@pytest.mark.parametrize("operation", ["kernel", "copy"])
def test_an_update_that_the_device_breaks_off_in_mid_write_is_taken_back_wherever_that_was(
    rig: Rig, device: Device, machine: Simulator, operation: str
) -> None:
    """Whichever step fails, no weight is half-way: bit for bit the old ones, and generation goes on."""
    digests = rig.do(ChecksumWeights("before"), ChecksumReply).tensors
    salt, taken_back = rig.salt, 0
    for nth, reply in _updates_under_faults(rig, device, machine, operation):
        assert (reply.success, reply.outcome) == (False, UpdateOutcome.UNCHANGED), (nth, reply)
        assert rig.do(ChecksumWeights(f"after{nth}"), ChecksumReply).tensors == digests
        taken_back += "was taken back" in reply.message
        request = run(rig, A)
        assert rig.outputs[request] == expected(A, 4, salt)
    if operation == "kernel":
        assert taken_back >= 3  # as many as there are weights
    else:
        assert not taken_back, "old values are copied before anything is written"
    assert rig.do(Flush("f"), FlushReply).success
    rig.check()


def test_a_broken_off_update_that_kept_no_old_values_holds_generation_until_it_is_repaired(
    rig: Rig, device: Device, machine: Simulator
) -> None:
    rig.weights.store.rollback_bytes = 0
    partial = 0
    for nth, reply in _updates_under_faults(rig, device, machine, "kernel"):
        assert not reply.success
        if reply.outcome is UpdateOutcome.UNCHANGED:
            continue
        assert reply.outcome is UpdateOutcome.PARTIAL
        partial += 1
        request = rig.add(A, 4)
        rig.step(5)
        assert request not in rig.outputs, "generated with weights of unknown value"
        repair = UpdateWeightsFromTensor(f"repair{nth}", tensors=make_weights(99))
        assert rig.do(repair, UpdateReply).success
        rig.run()
        assert rig.outputs[request] == expected(A, 4, salt_of(make_weights(99)))
    assert partial == 3
    rig.check()


def test_a_device_lost_in_mid_write_is_answered_and_nothing_is_generated_with_what_is_left(
    rig: Rig, device: Device, machine: Simulator
) -> None:
    given = {name: one.to(device.torch_device) for name, one in NEW.items()}
    request = rig.add(A, 4)
    rig.step()
    rig.do(Pause("p", PauseMode.RETRACT), PauseReply)
    with machine.inject(Fault("kernel", LoseDevice(), 2)) as script:
        reply = rig.do(UpdateWeightsFromTensor("u", tensors=given, flush_cache=False), UpdateReply)
        assert script.hits
        assert (reply.success, reply.refusal) == (False, Refusal.FAILED)
        assert reply.outcome is UpdateOutcome.PARTIAL
        again = rig.do(UpdateWeightsFromTensor("v", tensors=NEW), UpdateReply)
        assert not again.success
        assert request not in rig.finishes or rig.finishes[request].message


@pytest.mark.parametrize("machine", [SimConfig(capacity=64 << 20)], indirect=True)
def test_memory_that_somebody_else_took_can_be_asked_for_again(device: Device) -> None:
    rig = make_rig(device, num_pages=240_000)
    rig.do(ReleaseMemory("r", ("kv_cache",)), MemoryReply)
    theirs = torch.empty(50 << 20, dtype=torch.uint8, device=device.torch_device)
    reply = rig.do(ResumeMemory("s", ("kv_cache",)), MemoryReply)
    assert reply.refusal is Refusal.FAILED
    assert "OutOfMemoryError" in reply.message
    assert rig.weights.occupation.released == {MemoryTag.KV_CACHE}
    request = rig.add(A)
    rig.step(3)
    assert request not in rig.outputs
    del theirs
    assert rig.do(ResumeMemory("t", ("kv_cache",)), MemoryReply).success
    rig.run()
    assert rig.outputs[request] == expected(A, 8, rig.salt)


def test_a_device_found_lost_by_whoever_wants_its_memory_back_ends_the_requests_that_wait_for_it(
    rig: Rig, machine: Simulator
) -> None:
    rig.do(ReleaseMemory("r", ("kv_cache",)), MemoryReply)
    waiting = rig.add(A)
    rig.step()
    with machine.inject(Fault("*", LoseDevice(), times=None)):
        assert rig.do(ResumeMemory("s"), MemoryReply).refusal is Refusal.FAILED
        rig.step()
    assert rig.finishes[waiting].kind is FinishKind.ERROR
    assert "lost" in rig.finishes[waiting].message
    assert not rig.scheduler.state.healthy


def test_a_device_found_lost_by_an_update_ends_the_requests_that_wait_for_it(
    rig: Rig, machine: Simulator
) -> None:
    rig.do(ReleaseMemory("r", ("weights",)), MemoryReply)
    rig.do(ResumeMemory("s"), MemoryReply)
    waiting = rig.add(A)
    with machine.inject(Fault("*", LoseDevice(), times=None)):
        assert rig.do(UpdateWeightsFromTensor("u", tensors=NEW), Reply).refusal is Refusal.FAILED
        rig.step()
    assert rig.finishes[waiting].kind is FinishKind.ERROR


@pytest.fixture
def tiered(device: Device) -> Rig:
    return make_rig(device, num_pages=18, host_pages=100, max_batch_tokens=24)


def test_copies_run_on_a_stream_of_their_own_and_block_until_they_are_done(
    tiered: Rig, machine: Simulator
) -> None:
    rig = tiered
    assert rig.tier is not None
    assert isinstance(rig.tier.pool.copier, StreamCopier)
    run(rig, A)
    assert rig.scheduler.blockers()[0].name == "host_copies"
    assert rig.do(Flush("now"), FlushReply).refusal in (Refusal.BUSY, None)
    machine.clock.advance(1.0)
    rig.step()
    assert rig.scheduler.blockers() == ()
    assert rig.do(Flush("then"), FlushReply).success


@pytest.mark.parametrize("seed", range(3))
def test_tokens_are_the_same_with_copies_in_flight(device: Device, machine: Simulator, seed: int) -> None:
    rng = random.Random(seed)
    rig = make_rig(device, num_pages=20, host_pages=rng.choice([40, 100]), max_batch_tokens=24)
    stems = [[rng.randrange(1, 900) for _ in range(rng.randint(20, 40))] for _ in range(5)]
    prompts = {}
    for _ in range(16):
        prompt = [*rng.choice(stems), *(rng.randrange(1, 900) for _ in range(rng.randint(0, 9)))]
        prompts[rig.add(prompt, rng.randint(1, 6))] = prompt
        rig.step(rng.randint(0, 3))
        machine.clock.advance(rng.choice([0.0, 0.0, 1e-5, 1e-3]))
    for _ in range(500):
        if not rig.scheduler.state.requests:
            break
        rig.step()
        machine.clock.advance(1e-4)
    for identity, prompt in prompts.items():
        got = rig.outputs[identity]
        assert got == expected(prompt, len(got), rig.salt)
    assert rig.tier is not None
    assert rig.tier.counters.loaded > 0
    rig.check()
    for copy in rig.tier.copies:
        copy.wait()
    rig.step()
    assert Blocker("host_copies", 1) not in rig.scheduler.blockers()
    assert rig.do(Flush("f"), FlushReply).success
    assert rig.releases.counters[ReleasePoint.FLUSH].emptied == 1
