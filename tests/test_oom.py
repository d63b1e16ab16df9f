"""Running out of memory costs one retry, leaves nothing behind, and says what was free."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from devicekit.contract.errors import HookError
from devicekit.contract.records import ErrorKind
from devicekit.device import Device, get_device
from devicekit.oom import OutOfMemoryRecovery, describe, find_executable_batch_size
from devicekit.release import ReleasePoint, ReleasePoints, never
from devicekit.testing import MIB, DeviceLost, Fault, LoseDevice, OutOfMemory, Raise, SimConfig, Simulator

SMALL = pytest.mark.parametrize("sim_machine", [SimConfig(capacity=64 * MIB)], indirect=True)


def take(device: Device, mebibytes: int) -> torch.Tensor:
    return torch.empty(mebibytes * MIB, dtype=torch.uint8, device=device.torch_device)


def allocated(device: Device) -> int:
    return device.memory_stats().allocated or 0  # not known before the first use: then it is none


def counted(function: Callable[[], object]) -> tuple[Callable[[], object], list[None]]:
    calls: list[None] = []

    def call() -> object:
        calls.append(None)
        return function()

    return call, calls


def test_what_fits_costs_one_call_and_no_release(sim_device: Device) -> None:
    recovery = OutOfMemoryRecovery(sim_device, ReleasePoints(sim_device))
    assert recovery.run("adding", lambda a, b: a + b, 1, b=2) == 3
    assert recovery.last is None
    assert len(recovery.releases.ledger) == 0


@SMALL
def test_what_can_be_done_without_is_dropped_and_the_retry_succeeds(sim_device: Device) -> None:
    cache = [take(sim_device, 40)]
    recovery = OutOfMemoryRecovery(sim_device, ReleasePoints(sim_device), free=cache.clear)
    made = recovery.run("making room", take, sim_device, 40)
    assert made.nbytes == 40 * MIB
    report = recovery.last
    assert report is not None
    assert (report.what, report.recovered) == ("making room", True)
    assert (report.free, report.total) == (24 * MIB, 64 * MIB)
    assert report.reserved == report.allocated == 40 * MIB
    assert report.release is not None
    assert report.release.released == 40 * MIB
    assert (recovery.recovered, recovery.failed) == (1, 0)


@SMALL
def test_the_second_attempt_starts_with_everything_the_first_had_made_freed(sim_device: Device) -> None:
    seen: list[int] = []

    def attempt() -> None:
        seen.append(allocated(sim_device))
        made = take(sim_device, 30)
        take(sim_device, 40)
        del made

    recovery = OutOfMemoryRecovery(sim_device, ReleasePoints(sim_device))
    with pytest.raises(torch.OutOfMemoryError) as caught:
        recovery.run("two tensors", attempt)
    assert len(seen) == 2
    assert seen[1] == seen[0]
    # The error is still held here, with its traceback.
    assert caught.value.__traceback__ is not None
    assert allocated(sim_device) == 0


@SMALL
def test_errors_that_were_wrapped_on_the_way_keep_no_tensor_either(sim_device: Device) -> None:
    def inner() -> None:
        made = take(sim_device, 30)
        take(sim_device, 40)
        del made

    def outer() -> None:
        try:
            inner()
        except torch.OutOfMemoryError as error:
            raise ValueError("the model failed") from error

    recovery = OutOfMemoryRecovery(sim_device, ReleasePoints(sim_device))
    with pytest.raises(ValueError, match="the model failed") as caught:
        recovery.run("a model", outer)
    assert caught.value.__cause__ is not None
    assert allocated(sim_device) == 0


@SMALL
def test_an_error_that_stays_says_what_was_asked_for_and_what_was_free(sim_device: Device) -> None:
    recovery = OutOfMemoryRecovery(sim_device, ReleasePoints(sim_device))
    kept = take(sim_device, 24)
    with pytest.raises(torch.OutOfMemoryError) as caught:
        recovery.run("a tensor", take, sim_device, 48)
    text = describe(caught.value)
    assert f"{48 * MIB} bytes" in text
    assert f"Out of memory in a tensor: {40 * MIB} bytes of {64 * MIB} bytes were free" in text
    assert f"{kept.nbytes} bytes reserved" in text
    assert "gave back 0 bytes" in text
    assert (recovery.recovered, recovery.failed) == (0, 1)


def test_scripted_out_of_memory_is_recovered_from_once(sim_machine: Simulator, sim_device: Device) -> None:
    recovery = OutOfMemoryRecovery(sim_device, ReleasePoints(sim_device))
    with sim_machine.inject(Fault("allocate", OutOfMemory(), nth=1)) as script:
        recovery.run("a tensor", take, sim_device, 1)
    assert script.seen["allocate"] == 2
    call, calls = counted(lambda: take(sim_device, 1))
    with (
        sim_machine.inject(Fault("allocate", OutOfMemory(), times=None)),
        pytest.raises(torch.OutOfMemoryError),
    ):
        recovery.run("a tensor", call)
    assert len(calls) == 2


def test_a_policy_of_never_still_retries_and_the_note_says_so(
    sim_machine: Simulator, sim_device: Device
) -> None:
    releases = ReleasePoints(sim_device, {ReleasePoint.OUT_OF_MEMORY: never()})
    recovery = OutOfMemoryRecovery(sim_device, releases)
    take(sim_device, 24)
    with (
        sim_machine.inject(Fault("allocate", OutOfMemory(), times=None)),
        pytest.raises(torch.OutOfMemoryError) as caught,
    ):
        recovery.run("a tensor", take, sim_device, 1)
    assert "skipped: policy is never" in describe(caught.value)
    assert sim_device.memory_stats().reserved == 24 * MIB


def test_a_lost_device_is_not_tried_again(sim_machine: Simulator, sim_device: Device) -> None:
    recovery = OutOfMemoryRecovery(sim_device, ReleasePoints(sim_device))
    call, calls = counted(lambda: take(sim_device, 1))
    with sim_machine.inject(Fault("allocate", LoseDevice())), pytest.raises(DeviceLost):
        recovery.run("a tensor", call)
    assert len(calls) == 1


def test_a_device_lost_while_making_room_says_what_came_before(
    sim_machine: Simulator, sim_device: Device
) -> None:
    take(sim_device, 1)
    recovery = OutOfMemoryRecovery(sim_device, ReleasePoints(sim_device))
    call, calls = counted(lambda: take(sim_device, 1))
    faults = Fault("allocate", OutOfMemory()), Fault("empty_cache", LoseDevice())
    with sim_machine.inject(*faults), pytest.raises(HookError) as caught:
        recovery.run("a tensor", call)
    assert len(calls) == 1
    assert "while making room after: Out of memory in a tensor" in describe(caught.value)
    assert sim_device.classify_error(caught.value) is ErrorKind.DEVICE_LOST


def test_any_other_error_is_raised_at_once(sim_machine: Simulator, sim_device: Device) -> None:
    recovery = OutOfMemoryRecovery(sim_device, ReleasePoints(sim_device))
    call, calls = counted(lambda: take(sim_device, 1))
    fault = Fault("allocate", Raise(lambda: RuntimeError("misaligned address")))
    with sim_machine.inject(fault), pytest.raises(RuntimeError, match="misaligned") as caught:
        recovery.run("a tensor", call)
    assert len(calls) == 1
    assert describe(caught.value) == "RuntimeError: misaligned address"


@SMALL
def test_the_largest_halving_that_fits_is_found(sim_device: Device) -> None:
    fitted = find_executable_batch_size(lambda size: take(sim_device, 3 * size), 100, device=sim_device)
    assert fitted.batch_size == 12
    assert fitted.result.nbytes == 36 * MIB
    assert [failure.what for failure in fitted.failures] == [
        "a batch of 100",
        "a batch of 50",
        "a batch of 25",
    ]


@SMALL
def test_a_batch_that_fails_keeps_nothing_from_the_next(sim_device: Device) -> None:
    def attempt(size: int) -> int:
        before = allocated(sim_device)
        parts = [take(sim_device, 2) for _ in range(size)]
        return before + 0 * len(parts)

    assert find_executable_batch_size(attempt, 64, device=sim_device).result == 0


@SMALL
def test_no_batch_below_the_minimum_is_tried(sim_device: Device) -> None:
    with pytest.raises(torch.OutOfMemoryError) as caught:
        find_executable_batch_size(
            lambda size: take(sim_device, 10 * size), 50, minimum=20, device=sim_device
        )
    assert "tried: a batch of 50, a batch of 25, a batch of 20" in describe(caught.value)
    with pytest.raises(ValueError, match="at least the minimum of 4"):
        find_executable_batch_size(lambda size: size, 3, minimum=4, device=sim_device)


def test_the_host_recovers_too() -> None:
    sizes: list[int] = []

    def attempt(size: int) -> int:
        sizes.append(size)
        if size > 2:
            raise MemoryError
        return size

    device = get_device("cpu")
    assert find_executable_batch_size(attempt, 8, device=device).batch_size == 2
    assert sizes == [8, 4, 2]
    assert find_executable_batch_size(attempt, 2, device="cpu").failures == ()
