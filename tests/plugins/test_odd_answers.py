"""Vendor functions that answer in other types, or in what is no number: an error with the plugin, or unknown."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest
import torch

from devicekit.contract import CONTRACT_VERSION, HOOKS, AllocatorState
from devicekit.contract.errors import HookError
from devicekit.device.dispatch import guarded
from devicekit.registry import Candidate, OpenedBackend
from tests.plugins.support import CASES, Bench, Make, manifest_of

COUNTER = "allocated_bytes.all.current"
AMOUNTS = [
    np.int64(5),
    np.float32(5.0),
    5.0,
    -7,
    "12",
    3.7,
    2**64 - 1,
    True,
    None,
    math.nan,
    b"5",
    (1, 2),
    torch.tensor(5),
]
ODD = [*AMOUNTS, *({COUNTER: one} for one in AMOUNTS), *((one, 9) for one in AMOUNTS), {}, [], object()]
FUNCTIONS = (
    "current_device",
    "device_count",
    "get_device_properties",
    "memory_stats",
    "mem_get_info",
    "host_memory_stats",
    "temperature",
    "utilization",
    "power_draw",
    "clock_rate",
    "is_current_stream_capturing",
    "memory_snapshot",
    "_get_nvml_device_index",
    "_get_amdsmi_device_index",
)
NUMERIC = ("int", "bool", "MemoryStats", "MemoryInfo", "HostMemoryStats", "DeviceProperties", "Telemetry")
ASKING = [
    name for name, spec in HOOKS.items() if spec.parameters in ((), ("index",)) and spec.returns in NUMERIC
]


def _numbers(result: object) -> Iterator[tuple[str, object]]:
    """The numbers in a result and in the records of it, but for the vendor's own counters."""
    if dataclasses.is_dataclass(result):
        for field in dataclasses.fields(result):
            if field.name != "raw":
                for name, number in _numbers(getattr(result, field.name)):
                    yield f"{field.name}{name}", number
    elif isinstance(result, tuple):
        for one in result:
            yield from _numbers(one)
    elif result is not None and not isinstance(result, (str, bool, AllocatorState)):
        yield "", result


def _opened(bench: Bench) -> OpenedBackend:
    manifest = manifest_of(bench.name)
    candidate = Candidate(bench.name, f"devicekit-{bench.name}", "7.8", "test:Backend", manifest)
    return OpenedBackend(candidate, manifest, CONTRACT_VERSION, bench.backend)


@pytest.mark.parametrize("case", CASES[1::2], ids="-".join)
def test_what_a_vendors_function_answers_is_a_number_unknown_or_an_error_that_names_the_plugin(
    make: Make, case: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make(*case)
    bench.driver.initialised = True
    module = bench.double.module
    backend = _opened(bench)
    hooks = guarded(backend)
    for function in FUNCTIONS:
        if not hasattr(module, function):
            continue
        for answer in ODD:
            with monkeypatch.context() as patch:
                patch.setattr(module, function, lambda *_, answer=answer, **__: answer)
                for hook in ASKING:
                    if backend.function(hook) is None:
                        continue
                    why = f"{hook} where {function} answers {answer!r}"
                    try:
                        found = getattr(hooks, hook)(*([0] if HOOKS[hook].parameters else []))
                    except HookError as error:
                        refusal = str(error)
                    else:
                        refusal = ""
                    assert not refusal or f"(devicekit-{bench.name} 7.8)" in refusal, why
                    if refusal:
                        continue
                    for name, number in _numbers(found):
                        plain = type(number) is int or type(number) is float
                        assert plain, f"{why}: {name} is {number!r}"
                        assert 0 <= float(str(number)) < 2**63, f"{why}: {name} is {number!r}"


def test_numbers_of_other_libraries_are_taken_for_what_they_say(
    make: Make, monkeypatch: pytest.MonkeyPatch
) -> None:
    bench = make("cuda")
    bench.driver.initialised = True
    hooks = guarded(_opened(bench))
    monkeypatch.setattr(bench.double.module, "mem_get_info", lambda index: (np.int64(3), 4.0))
    assert (hooks.memory_info(0).free, hooks.memory_info(0).total) == (3, 4)
    monkeypatch.setattr(bench.double.module, "memory_stats", lambda index: {COUNTER: np.uint64(6)})
    assert hooks.memory_stats(0).allocated == 6
    monkeypatch.setattr(bench.double.module, "mem_get_info", lambda index: (2**64 - 1, 4))
    assert (hooks.memory_info(0).free, hooks.memory_info(0).total) == (None, 4)
