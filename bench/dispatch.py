"""Benchmarks of a device call against the vendor's own function, and of what starting costs.

Every figure is a ratio of two calls timed in turns within one run, or the processor time of a fresh interpreter.
An empty vendor function shows the whole cost of a device call, which no real function can. That cost is one Python
frame, so the ratio to a call that is itself one empty frame cannot come near 1: the rows "one frame around it"
give the floor, and have no target. Nor has the call without arguments against pluggy, which is pluggy's quickest.
"""

from __future__ import annotations

import resource
import statistics
import subprocess
import sys
from collections.abc import Callable, Mapping
from time import process_time

import pluggy
import torch

from bench.harness import Row
from devicekit.contract import AllocatorState, BackendSpec, Manifest, MemoryStats, hookimpl
from devicekit.contract.spec import PROJECT
from devicekit.device import Device, get_device
from devicekit.registry import register_backend, unregister_backend

_ROUNDS = 25
_ROUND_SECONDS = 0.003
_PER_LOOP = 10
_ADDED = 100.0  # nanoseconds; an engine makes some ten calls a step
_STARTS = 7
_EMPTY = "an empty process"

# What a vendor's allocator reports: nested in torch's C++, flat by the time Python sees it.
_RAW = {
    f"{what}.{pool}.{when}": 1 << 20
    for what in (
        "allocated_bytes",
        "active_bytes",
        "reserved_bytes",
        "requested_bytes",
        "inactive_split_bytes",
    )
    for pool in ("all", "small_pool", "large_pool")
    for when in ("current", "peak", "allocated", "freed")
}


class _Vendor:
    """Empty where that shows the call itself, and as much work as a vendor's binding does elsewhere."""

    @hookimpl
    def is_available(self) -> bool:
        return True

    @hookimpl
    def device_count(self) -> int:
        return 1

    @hookimpl
    def synchronize(self, index: int) -> None: ...

    @hookimpl
    def empty_cache(self) -> None: ...

    @hookimpl
    def memory_stats(self, index: int) -> MemoryStats:
        raw = dict(_RAW)
        return MemoryStats(
            state=AllocatorState.OK,
            source="bench",
            allocated=raw["allocated_bytes.all.current"],
            requested=raw["requested_bytes.all.current"],
            active=raw["active_bytes.all.current"],
            reserved=raw["reserved_bytes.all.current"],
            inactive_split=raw["inactive_split_bytes.all.current"],
            peak_allocated=raw["allocated_bytes.all.peak"],
            peak_active=raw["active_bytes.all.peak"],
            peak_reserved=raw["reserved_bytes.all.peak"],
            raw=raw,
        )


def run() -> list[Row]:
    """All rows."""
    table = {"name": "bench", "device_type": "cpu", "contract": ">=1.0,<2", "indexed": False}
    register_backend(_Vendor, Manifest.parse({"backend": table}))
    try:
        return [*_calls(get_device("bench")), *_cpu_calls(get_device("cpu")), *_starting()]
    finally:
        unregister_backend("bench")


def _calls(device: Device) -> list[Row]:
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(BackendSpec)
    manager.register(_Vendor())
    rows: list[Row] = []
    cases = (("synchronize", "synchronize", "index=0", 0.1), ("release_cache", "empty_cache", "", None))
    for method, hook, keywords, target in cases:
        direct, frame = _direct(device, hook), _frame(device, hook)
        names = {"device": device, "direct": direct, "frame": frame, "hook": getattr(manager.hook, hook)}
        call, bound = f"device.{method}()", f"direct({0 if keywords else ''})"
        rows += [
            _added(f"{method}, empty: what the device adds to it", call, bound, names),
            _ratio(f"{method}, empty: device / bound function", call, bound, names),
            _ratio(f"{method}, empty: one frame around it / bound function", "frame()", bound, names),
            _ratio(f"{method}, empty: device / pluggy call", call, f"hook({keywords})", names, target),
        ]
    names = {"device": device, "direct": _direct(device, "memory_stats")}
    # The vendor's part is bare here; each of the record's fields is looked at, which takes a microsecond.
    rows.append(
        _ratio("memory_stats, 60 counters: device / bound", "device.memory_stats()", "direct(0)", names, 1.3)
    )
    return rows


def _cpu_calls(device: Device) -> list[Row]:
    names = {
        "device": device,
        "module": torch.get_device_module,
        "trim": _direct(device, "empty_cache"),
        "info": _direct(device, "memory_info"),
    }
    by_module = "module('cpu').synchronize()"
    return [
        _ratio("cpu empty_cache: device / bound function", "device.release_cache()", "trim()", names, 1.3),
        _ratio("cpu memory_info: device / bound function", "device.memory_info()", "info(0)", names, 1.3),
        _ratio(
            "cpu synchronize: device / torch.get_device_module", "device.synchronize()", by_module, names, 1.0
        ),
    ]


def _direct(device: Device, hook: str) -> Callable[..., object]:
    function = device.backend.function(hook)
    if function is None:
        raise LookupError(hook)
    return function


def _frame(device: Device, hook: str) -> Callable[[], object]:
    function = _direct(device, hook)
    if "index" in device.backend.parameters(hook):
        return lambda: function(0)
    return lambda: function()


def _ratio(
    case: str, statement: str, against: str, names: Mapping[str, object], target: float | None = None
) -> Row:
    """Median of the ratios of two statements timed in turns."""
    first, second = _loop(statement, names), _loop(against, names)
    times = max(1, round(_ROUND_SECONDS / (_seconds(first, 100) / 100)))
    ratios = [_seconds(first, times) / _seconds(second, times) for _ in range(_ROUNDS)]
    return Row(case=case, value=statistics.median(ratios), unit="x", target=target)


def _added(case: str, statement: str, against: str, names: Mapping[str, object]) -> Row:
    """Nanoseconds by which one call takes longer than another, timed in turns."""
    first, second = _loop(statement, names), _loop(against, names)
    times = max(1, round(_ROUND_SECONDS / (_seconds(first, 100) / 100)))
    more = [(_seconds(first, times) - _seconds(second, times)) / (times * _PER_LOOP) for _ in range(_ROUNDS)]
    return Row(case=case, value=statistics.median(more) * 1e9, unit="ns", target=_ADDED)


def _loop(statement: str, names: Mapping[str, object]) -> Callable[[int], None]:
    # Unrolled, and with local names, as in a caller's own hot loop.
    body = "\n        ".join([statement] * _PER_LOOP)
    namespace: dict[str, Callable[..., Callable[[int], None]]] = {}
    source = f"""\
def make({", ".join(names)}):
    def loop(times):
      for _ in range(times):
        {body}
    return loop
"""
    exec(source, namespace)
    return namespace["make"](**names)


def _seconds(loop: Callable[[int], None], times: int) -> float:
    started = process_time()
    loop(times)
    return process_time() - started


def _starting() -> list[Row]:
    """Processor time of fresh interpreters, in turns with that of one that does nothing."""
    after_torch = "import time, torch; start = time.process_time(); {}; print(time.process_time() - start)"
    everything = after_torch.format("from devicekit import get_device")
    scripts: dict[str, tuple[Callable[[str], float], str, float | None]] = {
        _EMPTY: (_whole, "", None),
        "devicekit list, whole process": (_whole, "from devicekit.cli import main; main(['list'])", 100_000),
        "discover(), whole process": (_whole, "import devicekit; devicekit.discover()", 100_000),
        "import devicekit after torch": (_printed, after_torch.format("import devicekit"), 30_000),
        "get_device and all it needs after torch": (_printed, everything, 50_000),
    }
    rounds = [{case: once(script) for case, (once, script, _) in scripts.items()} for _ in range(_STARTS)]
    return [
        Row(
            case,
            statistics.median(one[case] for one in rounds) * 1e6,
            "us",
            yardstick=_EMPTY,
            multiple=statistics.median(one[case] / one[_EMPTY] for one in rounds),
            target=target,
        )
        for case, (_, _, target) in scripts.items()
    ]


def _whole(script: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, "-c", script], check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def _printed(script: str) -> float:
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return float(done.stdout)
