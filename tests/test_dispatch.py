"""Every hook of the contract on a real opened backend: missing, raising, out of memory, answering nonsense."""

from __future__ import annotations

import contextlib
import dataclasses
import math
from collections.abc import Callable

import numpy as np
import pytest
import torch

import devicekit
from devicekit import Device, DeviceProperties, HostMemoryStats, MemoryInfo, MemoryStats, hookimpl
from devicekit.contract import HOOKS, AllocatorSetting, HookKind, ProcessMemory, Telemetry
from devicekit.contract.errors import HookError, HookResultError, UnsupportedHook
from tests.odd_errors import ODD_ERRORS, odd

TENSOR = torch.zeros(1)

# How an engine reaches each hook.
CALLS: dict[str, Callable[[Device], object]] = {
    "synchronize": lambda device: device.synchronize(),
    "current_index": lambda device: device.current_index(),
    "set_index": lambda device: enter(device.current()),
    "device_properties": lambda device: device.properties(),
    "current_stream": lambda device: device.current_stream(),
    "create_stream": lambda device: device.create_stream(),
    "use_stream": lambda device: device.use_stream(object()),
    "create_event": lambda device: device.create_event(),
    "is_capturing": lambda device: device.is_capturing(),
    "create_graph": lambda device: device.create_graph(),
    "empty_cache": lambda device: device.empty_cache(),
    "empty_host_cache": lambda device: device.empty_host_cache(),
    "collect_ipc": lambda device: device.collect_ipc(),
    "memory_stats": lambda device: device.memory_stats(),
    "memory_info": lambda device: device.memory_info(),
    "process_memory": lambda device: device.process_memory(),
    "host_memory_stats": lambda device: device.host_memory_stats(),
    "memory_snapshot": lambda device: device.memory_snapshot(),
    "reset_peak_memory_stats": lambda device: device.reset_peak_memory_stats(),
    "set_memory_fraction": lambda device: device.set_memory_fraction(0.5),
    "memory_pool": lambda device: device.memory_pool(),
    "pin_memory": lambda device: device.pin_memory(TENSOR),
    "copies_overlap": lambda device: device.copies_overlap(),
    "manual_seed": lambda device: device.manual_seed(1),
    "get_rng_state": lambda device: device.get_rng_state(),
    "set_rng_state": lambda device: device.set_rng_state(TENSOR),
    "collective_backend": lambda device: device.collective_backend(),
    "visible_devices_variable": lambda device: device.visible_devices_variable(),
    "is_bad_fork": lambda device: device.is_bad_fork(),
    "export_ipc": lambda device: device.export_ipc(TENSOR),
    "import_ipc": lambda device: device.import_ipc(b""),
    "profiler_activity": lambda device: device.profiler_activity(),
    "record_memory_history": lambda device: device.record_memory_history(True),
    "supported_dtypes": lambda device: device.supported_dtypes(),
    "can_access_peer": lambda device: device.can_access_peer(1),
    "set_current_stream": lambda device: device.set_current_stream(TENSOR),
    "default_stream": lambda device: device.default_stream(),
    "native_handle": lambda device: device.native_handle(TENSOR),
    "priority_range": lambda device: device.priority_range(),
    "submit_work": lambda device: device.submit_work(),
    "graph_pool": lambda device: device.graph_pool(),
    "telemetry": lambda device: device.telemetry(),
    "allocator_settings": lambda device: device.allocator_settings(),
    "set_allocator_setting": lambda device: device.set_allocator_setting("limit", "1"),
    "is_pinned": lambda device: device.is_pinned(TENSOR),
    "register_host_memory": lambda device: device.register_host_memory(TENSOR),
    "unregister_host_memory": lambda device: device.unregister_host_memory(TENSOR),
    "export_event": lambda device: device.export_event(TENSOR),
    "import_event": lambda device: device.import_event(b""),
}
ELSEWHERE = {"is_available", "device_count", "classify_error"}  # asked by the registry, and by error handling
OPTIONAL = [name for name in CALLS if HOOKS[name].kind is not HookKind.REQUIRED]

UNKNOWN = {
    "memory_stats": MemoryStats(),
    "memory_info": MemoryInfo(),
    "host_memory_stats": HostMemoryStats(),
    "device_properties": DeviceProperties(),
    "telemetry": Telemetry(),
}


def in_every_field(kind: type, **given: object) -> list[object]:
    """Records that are right but for one field: a number of another library, another type, no amount."""
    text, yes, pair = "text", True, (1, 2)
    fitting = {"str": text, "str | None": text, "bool | None": yes, "tuple[int, int] | None": pair}
    readings = {"temperature", "power", "utilisation"}  # floats: these may be below zero
    odd = (
        np.int64(5),
        np.float32(2.5),
        torch.tensor(1),
        b"5",
        -7,
        2**64,
        math.nan,
        text,
        pair,
        (1, "2"),
        yes,
    )
    made = []
    for field in dataclasses.fields(kind):
        for value in odd:
            if fitting.get(str(field.type)) is value or (field.name in readings and type(value) is int):
                continue
            made.append(kind(**{**given, field.name: value}))
    return made


NONSENSE: dict[str, list[object]] = {
    "current_index": [True, 0.0, "0", None, torch.tensor(0)],
    "is_capturing": [1, None, "no", torch.tensor(True)],
    "copies_overlap": [1, None],
    "is_bad_fork": [0, None],
    "memory_stats": [None, {}, 7, MemoryInfo(), *in_every_field(MemoryStats)],
    "memory_info": [None, (1, 2), MemoryStats(), *in_every_field(MemoryInfo)],
    "host_memory_stats": [None, {}, *in_every_field(HostMemoryStats)],
    "device_properties": [None, "acme", {}, *in_every_field(DeviceProperties)],
    "process_memory": [7, {1: 2}, "abc", [3], *([one] for one in in_every_field(ProcessMemory, pid=1))],
    "memory_snapshot": [{}, 7, "abc", [7]],
    "collective_backend": [None, b"gloo", 7],
    "visible_devices_variable": [7, True],
    "profiler_activity": ["cpu", 7],
    "pin_memory": [None, [0.0]],
    "get_rng_state": [None, b"", [1]],
    "import_ipc": [None, 7],
    "current_stream": [None],
    "create_stream": [None],
    "use_stream": [None],
    "create_event": [None],
    "create_graph": [None],
    "memory_pool": [None],
    "export_ipc": [None],
    "supported_dtypes": [{torch.float32}, [torch.float32], 7, frozenset({"float32"})],
    "can_access_peer": [1, None, "yes"],
    "default_stream": [None],
    "native_handle": [None, "0x1", True, 1.0],
    "priority_range": [7, [0, -1], "0", (0,), (0, -1.0), (0, None)],
    "graph_pool": [None],
    "telemetry": [None, {}, 7, *in_every_field(Telemetry)],
    "allocator_settings": [
        7,
        {"a": "b"},
        *([one] for one in in_every_field(AllocatorSetting, name="a", value="b")),
    ],
    "is_pinned": [None, 1],
    "export_event": [None],
    "import_event": [None],
}


def enter(context: contextlib.AbstractContextManager[object]) -> None:
    with context:
        pass


def backend_with(**answers: Callable[..., object]) -> type:
    """A backend class with two devices whose hooks are the given functions of the hook's arguments."""
    base: dict[str, Callable[..., object]] = {
        "is_available": lambda: True,
        "device_count": lambda: 2,
        "synchronize": lambda index: None,
    }
    body: dict[str, object] = {}
    for name, answer in (base | answers).items():
        names = ", ".join(HOOKS[name].parameters)
        namespace: dict[str, object] = {"answer": answer}
        exec(f"def {name}(self, {names}):\n    return answer({names})", namespace)
        body[name] = hookimpl(namespace[name])
    return type("Backend", (), body)


def answering(hook: str, value: object) -> dict[str, Callable[..., object]]:
    """The hook answering ``value``, with what must be there for it to be reached."""
    needed = {"current_index": lambda: 1, "set_index": lambda index: None} if hook == "set_index" else {}
    return needed | {hook: lambda *_: value}


def raising(hook: str, error: BaseException) -> dict[str, Callable[..., object]]:
    def act(*_: object) -> object:
        raise error

    return answering(hook, None) | {hook: act}


def test_every_hook_of_the_contract_can_be_reached():
    assert CALLS.keys() | ELSEWHERE == HOOKS.keys()


@pytest.mark.parametrize("hook", OPTIONAL)
def test_a_missing_hook_does_what_its_kind_says(register, hook):
    device = register(backend_with(), indexed=True)
    assert not device.supports(hook)
    kind = HOOKS[hook].kind
    if kind is HookKind.ORDERING:
        with pytest.raises(UnsupportedHook, match=f"'acme'.*{hook}|lacks .*{hook}") as caught:
            CALLS[hook](device)
        assert caught.value.backend == "acme"
    elif kind is HookKind.RELEASING:
        answer = CALLS[hook](device)
        assert not answer
        if isinstance(answer, devicekit.ReleaseResult):
            assert answer.reason == f"backend 'acme' (in process) does not implement {hook}"
            assert answer.released is None
        else:
            assert answer is False
    else:
        assert CALLS[hook](device) == UNKNOWN.get(hook)


@pytest.mark.parametrize("error", [ValueError("bad handle"), SystemExit(3)])
@pytest.mark.parametrize("hook", CALLS)
def test_a_raising_hook_is_named_and_its_cause_kept(register, hook, error):
    device = register(backend_with(**raising(hook, error)), indexed=True)
    with pytest.raises(HookError, match=f"^{hook} of backend 'acme'") as caught:
        CALLS[hook](device)
    assert (caught.value.backend, caught.value.hook) == ("acme", hook)
    assert caught.value.__cause__ is error


@pytest.mark.parametrize("hook", CALLS)
def test_out_of_memory_and_an_interrupt_keep_their_type(register, hook):
    for number, error in enumerate([torch.OutOfMemoryError("full"), KeyboardInterrupt()]):
        device = register(backend_with(**raising(hook, error)), name=f"acme{number}", indexed=True)
        with pytest.raises(type(error)) as caught:
            CALLS[hook](device)
        assert caught.value is error


def test_what_the_backend_classifies_as_out_of_memory_keeps_its_type(register):
    class VendorFull(RuntimeError): ...

    def classify(error: BaseException) -> devicekit.ErrorKind | None:
        return devicekit.ErrorKind.OUT_OF_MEMORY if isinstance(error, VendorFull) else None

    device = register(backend_with(classify_error=classify, **raising("memory_pool", VendorFull())))
    with pytest.raises(VendorFull):
        device.memory_pool()
    assert device.classify_error(VendorFull()) is devicekit.ErrorKind.OUT_OF_MEMORY
    assert device.classify_error(ValueError()) is None


@pytest.mark.parametrize("classify", [lambda error: 1 / 0, lambda error: "out of memory", lambda error: True])
def test_a_classifier_that_fails_does_not_replace_the_error_it_was_asked_about(register, classify):
    device = register(backend_with(classify_error=classify, **raising("synchronize", ValueError("real"))))
    with pytest.raises(HookError, match="real"):
        device.synchronize()
    assert device.classify_error(ValueError()) is None


@pytest.mark.parametrize(
    ("hook", "value"), [(hook, value) for hook, values in NONSENSE.items() for value in values], ids=repr
)
def test_an_answer_the_contract_does_not_allow_is_refused(register, hook, value):
    device = register(backend_with(**answering(hook, value)), indexed=True)
    with pytest.raises(HookResultError, match=f"^{hook} of backend 'acme'.*contract says") as caught:
        CALLS[hook](device)
    assert (caught.value.backend, caught.value.hook) == ("acme", hook)


@pytest.mark.parametrize("hook", [name for name in CALLS if HOOKS[name].returns == "None"])
def test_what_a_hook_without_a_result_returns_goes_nowhere(register, hook):
    device = register(backend_with(**answering(hook, "leftover")), indexed=True)
    assert CALLS[hook](device) in (None, True) or isinstance(CALLS[hook](device), devicekit.ReleaseResult)


def test_devicekit_errors_of_a_backend_pass_unchanged(register):
    error = UnsupportedHook("no such stream", backend="acme", hook="create_stream")
    device = register(backend_with(**raising("create_stream", error)))
    with pytest.raises(UnsupportedHook) as caught:
        device.create_stream()
    assert caught.value is error


def test_the_index_is_put_in_front_and_the_arguments_follow_in_order(register):
    seen: list[tuple[object, ...]] = []
    hooks = ("synchronize", "create_stream", "create_event", "set_memory_fraction", "record_memory_history")
    register(
        backend_with(**{hook: lambda *arguments: seen.append(arguments) or object() for hook in hooks}),
        indexed=True,
    )
    device = devicekit.get_device("acme:1")
    device.synchronize()
    device.create_stream(-2)
    device.create_event(timing=True)
    device.set_memory_fraction(0.25)
    device.record_memory_history(False)
    assert seen == [(1,), (1, -2), (1, True, False), (1, 0.25), (1, False)]


def test_a_wrong_call_is_the_callers_type_error_and_not_the_backends_fault(register):
    device = register(backend_with())
    with pytest.raises(TypeError, match="synchronize"):
        device.synchronize(0)


def test_two_open_backends_never_hear_each_others_calls(register):
    calls: dict[str, list[str]] = {"one": [], "two": []}
    devices = {}
    for name, heard in calls.items():
        hooks = {
            hook: lambda *_, hook=hook, heard=heard: heard.append(hook)
            for hook in ("synchronize", "empty_cache")
        }
        if name == "two":
            hooks["collect_ipc"] = lambda heard=heard: heard.append("collect_ipc")
        devices[name] = register(backend_with(**hooks), name=name)
    devices["one"].synchronize()
    devices["one"].release_cache()
    devices["one"].collect_ipc()  # only two has it
    assert calls == {"one": ["synchronize", "empty_cache"], "two": []}
    devices["two"].synchronize()
    assert calls["one"] == ["synchronize", "empty_cache"]
    assert calls["two"] == ["synchronize"]


@pytest.mark.parametrize("name", ODD_ERRORS)
def test_no_exception_is_too_odd_to_be_named_by_its_hook(register, name):
    error = odd(name)
    device = register(backend_with(**raising("synchronize", error)))
    with pytest.raises(HookError, match=r"^synchronize of backend 'acme'") as caught:
        device.synchronize()
    assert caught.value.__cause__ is error
