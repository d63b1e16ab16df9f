from __future__ import annotations

import copy
import gc
import inspect
import pickle
import threading
import weakref
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

import devicekit
from devicekit import MemoryStats, hookimpl
from devicekit.contract import HOOKS
from devicekit.contract.errors import HookError, UnsupportedHook
from tests.required import Required


class Cards(Required):
    """Two devices with a current one per thread, and a cache that emptying takes to its live bytes."""

    def __init__(self) -> None:
        self.local = threading.local()
        self.reserved = 64
        self.refuse: set[int] = set()

    @hookimpl
    def device_count(self) -> int:
        return 2

    @hookimpl
    def current_index(self) -> int:
        return getattr(self.local, "index", 0)

    @hookimpl
    def set_index(self, index: int) -> None:
        if index in self.refuse:
            raise RuntimeError("device busy")
        self.local.index = index

    @hookimpl
    def empty_cache(self) -> None:
        self.reserved = 16

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        return MemoryStats(allocated=16, reserved=self.reserved)


@pytest.fixture
def cards(register) -> devicekit.Device:
    register(Cards, name="cards", indexed=True)
    return devicekit.get_device("cards:1")


def test_torch_allocates_on_the_device_it_names(cards, register):
    assert cards.torch_device == torch.device("cpu", 1)
    plain = register(Cards, name="plain", indexed=False)
    assert plain.torch_device == torch.device("cpu")
    assert torch.zeros(2, device=plain.torch_device).device.type == "cpu"


def test_no_stream_changes_nothing_where_there_are_none(cards):
    with pytest.raises(UnsupportedHook), devicekit.get_device("cards").use_stream(object()):
        pass
    with devicekit.get_device("cards").use_stream(None) as nothing:
        assert nothing is None


def test_it_says_what_it_is(cards):
    assert repr(cards) == "<Device cards:1 of 'cards' (in process)>"
    assert (cards.name, cards.index) == ("cards", 1)


def test_asking_first_is_exact_and_knows_no_other_names(cards):
    assert cards.supports("empty_cache")
    assert not cards.supports("create_stream")
    with pytest.raises(ValueError, match="no hook 'empty_cash'"):
        cards.supports("empty_cash")
    cards.require("empty_cache", "synchronize")
    with pytest.raises(UnsupportedHook, match="lacks create_stream, create_event"):
        cards.require("create_stream", "empty_cache", "create_event")


def test_emptying_reports_bytes_before_and_after(cards):
    result = cards.empty_cache()
    assert result
    assert (result.reserved_before, result.reserved_after, result.released) == (64, 16, 48)
    assert result.seconds >= 0
    assert cards.release_cache() is True


def calls(device: devicekit.Device) -> dict[str, Callable[..., object]]:
    return {
        name: getattr(device, name)
        for name in dir(device)
        if not name.startswith("_") and callable(getattr(device, name))
    }


@pytest.mark.parametrize("whole", [False, True], ids=["hooks missing", "hooks present"])
def test_every_method_can_be_read_up_whether_its_hook_is_there_or_not(register, whole):
    backend = type("Whole", (Required,), {name: _hook(name) for name in HOOKS}) if whole else Required
    device = register(backend)
    assert type(device) is devicekit.Device
    for name, method in calls(device).items():
        assert (inspect.getdoc(method) or "").strip().endswith((".", "`")), name
        source = inspect.getsource(method)  # from a file that exists
        assert f"def {name}(self" in source
        assert Path(inspect.getsourcefile(method) or "").is_file()
        signature = inspect.signature(method)
        assert "*" not in str(signature).replace("*, ", "").replace("*hooks: ", ""), name
        assert signature.return_annotation is not inspect.Signature.empty, name
        assert all(one.annotation is not inspect.Parameter.empty for one in signature.parameters.values()), (
            name
        )


def _hook(name: str) -> object:
    spec = HOOKS[name]
    namespace: dict[str, Callable[..., object]] = {}
    value = {"bool": "True", "int": "1"}.get(spec.returns, "None")
    exec(f"def {name}({', '.join(('self', *spec.parameters))}): return {value}", namespace)
    return hookimpl(namespace[name])


def test_devices_of_two_backends_are_of_one_class_and_keep_their_own_hooks(cards, register):
    plain = register(Required, name="plain")
    assert type(cards) is type(plain) is devicekit.Device
    assert cards.release_cache() is True
    assert plain.release_cache() is False


def test_the_current_device_is_restored_after_an_exception(cards):
    inside: list[int] = []
    with pytest.raises(IndexError), cards.current():
        inside.append(cards.current_index()) or inside[1]
    assert inside == [1]
    assert cards.current_index() == 0


def test_the_current_device_nests(cards):
    first = devicekit.get_device("cards:0")
    with cards.current():
        with first.current():
            assert cards.current_index() == 0
            with first.current():
                assert cards.current_index() == 0
            assert cards.current_index() == 0
        assert cards.current_index() == 1
    assert cards.current_index() == 0


def test_a_device_that_cannot_become_current_leaves_the_previous_one(cards):
    cards.backend.plugin.refuse.add(1)
    with pytest.raises(HookError, match=r"set_index of backend 'cards'.*device busy"), cards.current():
        pytest.fail("the block must not run")
    assert cards.current_index() == 0


def test_the_current_device_is_the_threads_own(cards):
    seen: list[int] = []
    with cards.current():
        thread = threading.Thread(target=lambda: seen.append(cards.current_index()))
        thread.start()
        thread.join()
        assert cards.current_index() == 1
    assert seen == [0]


def test_a_device_survives_pickling_and_copying_as_itself(cards):
    assert pickle.loads(pickle.dumps(cards)) is cards
    assert copy.deepcopy(cards) is cards
    assert isinstance(cards, devicekit.Device)


def test_a_device_made_beside_the_registrys_is_not_kept_alive(cards):
    device = weakref.ref(devicekit.Device(cards.backend, 0))
    gc.collect()
    assert device() is None
    cards.backend.add_observer(object())  # nothing is compiled for it any more


def test_an_unregistered_backend_is_let_go_with_its_devices():
    manifest = {"name": "brief", "device_type": "cpu", "contract": ">=1.0,<2", "indexed": False}
    devicekit.register_backend(Cards, devicekit.Manifest.parse({"backend": manifest}))
    device = devicekit.get_device("brief")
    plugin = weakref.ref(device.backend.plugin)
    devicekit.unregister_backend("brief")
    with pytest.raises(devicekit.DeviceKitError):
        devicekit.get_device("brief")
    manifest["name"] = "next"
    devicekit.register_backend(Cards, devicekit.Manifest.parse({"backend": manifest}))
    devicekit.get_device("next")  # the registry lets go when it next loads something
    devicekit.unregister_backend("next")
    del device
    gc.collect()
    assert plugin() is None
