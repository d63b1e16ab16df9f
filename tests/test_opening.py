from __future__ import annotations

import asyncio
import contextlib
import os
import pickle
import threading

import pytest
import torch

import devicekit
from devicekit import hookimpl
from devicekit.contract.errors import (
    BackendLoadError,
    BackendUnavailable,
    ConfigurationError,
    HookError,
    InvalidDevice,
    UnknownBackend,
)
from tests.required import Required


class Pair(Required):
    """Two devices."""

    initialised_in: int | None = None

    @hookimpl
    def device_count(self) -> int:
        return 2

    @hookimpl
    def synchronize(self, index: int) -> None:
        self.initialised_in = os.getpid()

    @hookimpl
    def is_bad_fork(self) -> bool:
        return self.initialised_in not in (None, os.getpid())


@pytest.fixture
def pair(register) -> devicekit.Device:
    return register(Pair, name="pair", device_type="xla", indexed=True)


def test_every_spelling_of_a_device_opens_the_same_one(pair):
    one = devicekit.get_device("pair:1")
    spellings = ["PAIR:1", " pair:1 ", "pair:01", torch.device("xla", 1), torch.device("xla:1"), one]
    assert all(devicekit.get_device(spelling) is one for spelling in spellings)
    for spelling in ("pair", "pair:0", torch.device("xla")):
        assert devicekit.get_device(spelling) is pair


@pytest.mark.parametrize(
    "spec", ["", ":", "pair:", "pair:-1", "pair:x", "pair:1:2", "1", "a b", "pair:\uff11", 0, 1, b"pair"]
)
def test_what_is_no_device_is_said_to_be_none(pair, spec):
    with pytest.raises(ConfigurationError, match="A device is written"):
        devicekit.get_device(spec)


@pytest.mark.parametrize("spec", ["pair:2", "pair:10000", torch.device("xla", 2)])
def test_an_index_that_does_not_exist_names_those_that_do(pair, spec):
    with pytest.raises(InvalidDevice, match="indices 0 to 1 exist") as caught:
        devicekit.get_device(spec)
    assert caught.value.backend == "pair"


def test_the_variable_that_hides_devices_is_named_with_a_wrong_index(register):
    register(Pair, name="pair", indexed=True, visible_devices_variable="PAIR_VISIBLE_DEVICES")
    with pytest.raises(InvalidDevice, match="PAIR_VISIBLE_DEVICES limits what this process sees"):
        devicekit.get_device("pair:7")


def test_a_torch_type_without_a_backend_is_unknown_and_never_replaced(pair):
    with pytest.raises(UnknownBackend, match="'meta'"):
        devicekit.get_device(torch.device("meta"))
    with pytest.raises(UnknownBackend, match="'mtia'"):
        devicekit.get_device(torch.device("mtia"))


def test_a_torch_type_goes_to_the_backend_of_its_name_before_any_other_that_serves_it(register):
    register(Pair, name="earlier", device_type="hpu", probe_order=1)
    assert devicekit.get_device(torch.device("hpu")).name == "earlier"
    register(Pair, name="hpu", device_type="hpu", probe_order=9)
    assert devicekit.get_device(torch.device("hpu")).name == "hpu"


def test_a_torch_type_passes_over_a_namesake_without_hardware_but_not_a_broken_one(register):
    class Absent(Pair):
        @hookimpl
        def is_available(self) -> bool:
            return False

    def broken() -> object:
        raise OSError("driver mismatch")

    register(Pair, name="second", device_type="hpu")
    register(Absent, name="hpu", device_type="hpu", open=False)
    assert devicekit.get_device(torch.device("hpu")).name == "second"
    devicekit.unregister_backend("hpu")
    register(broken, name="hpu", device_type="hpu", open=False)
    with pytest.raises(BackendLoadError, match="driver mismatch"):
        devicekit.get_device(torch.device("hpu"))


def test_a_choice_follows_the_settings_and_the_registrations(pair, register, monkeypatch):
    register(Pair, name="other")
    monkeypatch.setenv("DEVICEKIT_BACKEND", "pair:1")
    assert devicekit.get_device() is devicekit.get_device("pair:1")
    monkeypatch.setenv("DEVICEKIT_BACKEND", "other")
    assert devicekit.get_device().name == "other"
    devicekit.unregister_backend("other")
    with pytest.raises(UnknownBackend):
        devicekit.get_device()


def test_opening_again_does_not_probe_again(register):
    asked = []

    class Counting(Pair):
        @hookimpl
        def is_available(self) -> bool:
            asked.append(1)
            return True

    register(Counting, name="counting")
    before = len(asked)
    for _ in range(3):
        devicekit.get_device("counting")
    assert len(asked) == before


class TestUse:
    def test_it_is_the_default_inside_and_restored_on_every_exit(self, pair, register, monkeypatch):
        other = register(Pair, name="other")
        monkeypatch.setenv("DEVICEKIT_BACKEND", "other")
        with devicekit.use("pair:1") as device:
            assert devicekit.get_device() is device is devicekit.get_device("pair:1")
            with contextlib.suppress(KeyError), devicekit.use(other):
                assert devicekit.get_device() is other
                raise KeyError
            assert devicekit.get_device() is device
            assert devicekit.get_device("other") is other  # a name is a name
        assert devicekit.get_device() is other

    def test_functions_that_take_no_device_use_it(self, pair):
        with devicekit.use("pair"):
            assert devicekit.empty_device_cache() is False
            assert devicekit.available_memory().bytes is None

    def test_a_device_that_cannot_be_opened_changes_nothing(self, pair):
        with devicekit.use("pair"):
            with pytest.raises(UnknownBackend), devicekit.use("nosuch"):
                pytest.fail("the block must not run")
            assert devicekit.get_device() is pair

    def test_threads_and_tasks_do_not_see_each_others(self, pair, monkeypatch):
        monkeypatch.setenv("DEVICEKIT_BACKEND", "pair:1")
        one = devicekit.get_device()
        seen: list[devicekit.Device] = []
        with devicekit.use("pair:0"):
            thread = threading.Thread(target=lambda: seen.append(devicekit.get_device()))
            thread.start()
            thread.join()
        assert seen == [one]

        async def task(spec: str) -> None:
            with devicekit.use(spec):
                await asyncio.sleep(0)  # the other task enters its block meanwhile
                assert devicekit.get_device() is devicekit.get_device(spec)

        async def both() -> None:
            await asyncio.gather(task("pair:0"), task("pair:1"))

        asyncio.run(both())


def in_child(action) -> object:
    """What ``action`` returns, or the exception it raises, in a forked child."""
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            outcome = action()
        except BaseException as error:
            outcome = error
        os.write(write, pickle.dumps(outcome))
        os._exit(0)
    os.close(write)
    with os.fdopen(read, "rb") as pipe:
        answer = pickle.loads(pipe.read())
    os.waitpid(child, 0)
    return answer


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
class TestFork:
    def test_probing_in_the_parent_leaves_the_child_able_to_open(self, pair):
        assert in_child(lambda: devicekit.get_device("pair:1").index) == 1

    def test_a_device_initialised_before_the_fork_is_refused_in_the_child(self, pair):
        pair.synchronize()
        error = in_child(lambda: devicekit.get_device("pair"))
        assert isinstance(error, BackendUnavailable)
        assert "before this process was forked" in str(error)
        assert "'spawn'" in str(error)
        assert devicekit.get_device("pair") is pair

    def test_a_backend_that_cannot_say_is_a_named_fault_in_the_child(self, register):
        class Silent(Pair):
            @hookimpl
            def is_bad_fork(self) -> bool:
                raise OSError("no driver")

        register(Silent, name="silent", open=False)
        # Never opened before: not asked.
        assert in_child(lambda: devicekit.get_device("silent").name) == "silent"
        devicekit.get_device("silent")
        error = in_child(lambda: devicekit.get_device("silent"))
        assert isinstance(error, HookError)
        assert "is_bad_fork of backend 'silent'" in str(error)

    def test_a_child_forked_while_another_thread_loads_a_plugin_does_not_wait_for_ever(self, register):
        loading, go_on = threading.Event(), threading.Event()

        def slow() -> object:
            loading.set()
            go_on.wait(0.2)
            return Pair()

        register(slow, name="slow", open=False)
        thread = threading.Thread(target=lambda: devicekit.get_device("slow"))
        thread.start()
        loading.wait()
        assert in_child(lambda: devicekit.get_device("slow").name) == "slow"
        thread.join()


def test_what_engines_hold_today_names_a_device_too(register):
    register(Required, name="host", indexed=False, device_type="cpu")
    cpu = devicekit.get_device(torch.device("cpu"))
    assert devicekit.get_device(torch.cpu) is cpu
    assert devicekit.get_device(torch.zeros(1)) is cpu
    assert devicekit.empty_device_cache(torch.cpu) in (True, False)
    assert devicekit.available_memory(torch.zeros(1)).driver_free is not None
    for wrong in (7, 1.5, object(), os, torch, torch.nn, [], b"cpu"):
        with pytest.raises(ConfigurationError):
            devicekit.get_device(wrong)


def test_torchs_own_accelerator_means_whichever_there_is_and_never_the_host(sim_device, monkeypatch):
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: torch.device("sim"))
    assert devicekit.get_device(torch.accelerator).index == 0
    torch.ones(1, device="sim:1")  # from here on the current device can be asked for
    with devicekit.get_device("sim:1").current():
        assert devicekit.get_device(torch.accelerator) is devicekit.get_device("sim:1")
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda: None)
    with pytest.raises(BackendUnavailable, match="torch sees no accelerator"):
        devicekit.get_device(torch.accelerator)


def test_a_device_module_means_its_current_device(sim_device):
    # Asked before anything was used: nothing is initialised.
    assert devicekit.get_device(torch.sim).index == 0
    assert devicekit.get_device(torch.ones(1, device="sim:1")).index == 1
    with devicekit.get_device("sim:1").current():
        assert devicekit.get_device(torch.sim).index == 1
        assert devicekit.empty_device_cache(torch.sim) is True
