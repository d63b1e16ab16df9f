"""What is there, and what it is."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import Any

import torch

from devicekit_conformance.context import MIB
from devicekit_conformance.effects import effect
from devicekit_conformance.measures import within_the_machine
from devicekit_conformance.trial import Trial


@effect("is_available")
def is_available(trial: Trial) -> None:
    found = trial.call()
    own = trial.own("is_available")
    trial.expect(own is None or found is bool(own), f"it is {found}, and torch's own says {own}")
    if trial.count:
        trial.expect(found is True, "it is False, and there are devices")


@effect("device_count")
def device_count(trial: Trial) -> None:
    found = trial.call()
    own = trial.own("device_count")
    trial.expect(own is None or found == own, f"it is {found}, and torch's own says {own}")
    trial.equal(found, trial.ctx.device_count, "the number of devices")
    one = trial.ctx.manifest.indexed or found <= 1
    trial.expect(one, f"it is {found}, and by the manifest there is one device, which has no index")


@effect("current_index")
def current_index(trial: Trial) -> None:
    kept = [trial.tensor(MIB, index) for index in trial.others[:1]]  # what is used is not what is current
    with trial.current(trial.index):
        wanted = trial.index if trial.ctx.probe.current_index() is not None else 0
        trial.equal(trial.call(), wanted, f"with device {wanted} current, it")
    _of_the_thread(trial)
    _by_another_road(trial)
    seen = trial.ctx.probe.current_index()
    found = trial.call()
    trial.expect(seen is None or found == seen, f"it is {found}, and torch's current device is {seen}")
    del kept


def _of_the_thread(trial: Trial) -> None:
    """A new thread has the device that threads begin with, whatever this one chose by the hook."""
    before = trial.ctx.probe.current_index()
    if before is None or not trial.others or not trial.has("set_index"):
        return
    for chosen in (*trial.others[:1], trial.index):
        trial.other("set_index", chosen)
        own, said, then = trial.in_a_thread(
            lambda: (
                trial.ctx.probe.current_index(),
                trial.other("current_index"),
                trial.ctx.probe.current_index(),
            )
        )
        here = trial.ctx.probe.current_index()
        trial.equal(here, chosen, f"with device {chosen} chosen by the hook, torch's current device")
        trial.equal(
            (said, then), (own, own), f"with device {chosen} chosen here, what a new thread is told and has"
        )
    trial.select(before)


def _by_another_road(trial: Trial) -> None:
    """What torch's own function made current is what the hook says, also once a hook made another so."""
    before = trial.ctx.probe.current_index()
    if before is None or not callable(getattr(trial.runtime, "set_device", None)):
        return
    for index in (trial.index, *trial.others[:1]):
        said = trial.in_a_thread(lambda: (trial.runtime.set_device(index), trial.call())[1])  # noqa: B023  # at once
        trial.equal(said, index, f"what a thread is told that chose device {index} by torch's own function")
    for chosen in (trial.index, *trial.others[:1]):
        for then in (*trial.others[:1], trial.index):
            if trial.has("set_index"):
                trial.other("set_index", chosen)
            trial.select(then)
            told = f"with device {chosen} chosen by the hook and then {then} by torch's own function, it"
            trial.equal(trial.call(), then, told)
    trial.select(before)


@effect("set_index")
def set_index(trial: Trial) -> None:
    before = trial.current_index()
    if before is not None:
        for other in trial.others[:1]:  # or it would have nothing to do
            trial.select(other)
    trial.call(trial.index)
    if trial.has("current_index"):
        _of_the_thread(trial)
        trial.call(trial.index)
    now = trial.ctx.probe.current_index()
    trial.expect(now is None or now == trial.index, f"torch's current device is {now} after it")
    if now is not None and trial.runtime is not None:
        where = torch.empty(16, device=trial.ctx.manifest.device_type).device.index
        trial.equal(where, trial.index, "the device of a new tensor without an index")
    if before is not None:
        trial.select(before)


@effect("device_properties")
def device_properties(trial: Trial) -> None:
    found = trial.call(trial.index)
    trial.equal(trial.call(trial.index), found, "the second answer")
    for name, kind in (("name", str), ("total_memory", int), ("uuid", str), ("architecture", str),
                       ("compute_units", int), ("unified_memory", bool), ("driver", str)):  # fmt: skip
        value = getattr(found, name)
        trial.expect(value is None or type(value) is kind, f"{name} is {value!r}")
        trial.expect(value is None or kind is bool or bool(value), f"{name} is {value!r}: unknown is None")
        trial.expect(kind is not int or value is None or value > 0, f"{name} is {value!r}")
    _places(trial, found)
    own = trial.own("get_device_properties", trial.index)
    for name in ("name", "total_memory", "uuid"):
        value, truth = getattr(found, name), getattr(own, name, None)
        if value is not None and truth is not None:
            trial.expect(_alike(value, truth), f"{name} is {value!r}, and torch's own says {truth!s}")
    integrated = getattr(own, "is_integrated", None)
    if integrated is not None and found.unified_memory is not None:
        trial.equal(found.unified_memory, bool(integrated), "unified_memory")
    units = getattr(own, "multi_processor_count", None)
    if units and found.compute_units:
        trial.equal(found.compute_units, units, "compute_units")
    for index in trial.others if trial.runtime is not None else ():
        theirs: Any = trial.ctx.raw_hook(trial.hook)(index)
        for name in ("uuid", "physical_index"):  # parts of one card may share its address
            value = getattr(found, name)
            same = value is not None and getattr(theirs, name) == value
            trial.expect(not same, f"device {index} has the same {name}, {value}")
    _is_of_the_device(trial, found)
    info = trial.own("mem_get_info", trial.index)
    if info is not None and found.total_memory is not None:
        near = 0.8 * found.total_memory <= info[1] <= 1.25 * found.total_memory
        trial.expect(
            near, f"total_memory is {found.total_memory}, and torch's own mem_get_info says {info[1]}"
        )


def _is_of_the_device(trial: Trial, found: Any) -> None:
    """What it has at all, whatever of it is in use; and in bytes, as other hooks and the system count."""
    block = trial.tensor(8 * MIB).fill_(1)
    trial.equal(trial.call(trial.index), found, "with memory in use, the answer")
    del block
    total = found.total_memory
    if total is None:
        return
    if trial.runtime is None and trial.has("memory_info"):
        other = getattr(trial.other("memory_info", trial.index), "total", None)
        near = other is None or 0.8 * total <= other <= 1.25 * total
        trial.expect(near, f"total_memory is {total}, and memory_info() says {other}")
    if trial.ctx.manifest.host:
        told = within_the_machine(total)
        trial.expect(not told, f"total_memory is {total}, and {told}")
        units, cores = found.compute_units, os.cpu_count()
        many = units is not None and cores is not None and units > cores
        trial.expect(not many, f"compute_units is {units}, and the machine has {cores} processors")


_PCI = re.compile(r"[0-9a-f]{4,8}:[0-9a-f]{2}:[0-9a-f]{2}\.[0-7]")
_NODES = Path("/sys/devices/system/node")


def _places(trial: Trial, found: Any) -> None:
    """Where the device is, and what it can do, as far as the host can tell that it cannot be so."""
    capability, address, node, place = (
        getattr(found, name) for name in ("capability", "pci_address", "numa_node", "physical_index")
    )
    pair = type(capability) is tuple and [type(one) for one in capability] == [int, int]
    trial.expect(capability is None or (pair and min(capability) >= 0), f"capability is {capability!r}")
    own = trial.own("get_device_capability", trial.index)
    if capability is not None and isinstance(own, tuple) and all(type(one) is int for one in own):
        trial.equal(capability, own, "capability, by torch's own,")
    written = type(address) is str and _PCI.fullmatch(address)
    trial.expect(address is None or written, f"pci_address is {address!r}, not as 0000:3b:00.0")
    for name, value in (("numa_node", node), ("physical_index", place)):
        trial.expect(value is None or (type(value) is int and value >= 0), f"{name} is {value!r}")
    there = node is None or not _NODES.is_dir() or (_NODES / f"node{node}").exists()
    trial.expect(there, f"numa_node is {node}, and this machine has no such node")
    trial.expect(place is None or place < 1024, f"physical_index is {place}")


def _alike(value: object, truth: object) -> bool:
    if isinstance(value, int):
        return value == truth
    plain = [re.sub(r"[^0-9a-z]", "", str(one).lower()) for one in (value, truth)]
    return plain[0] in plain[1] or plain[1] in plain[0]


@effect("collective_backend")
def collective_backend(trial: Trial) -> None:
    told = trial.ctx.manifest.collective_backend
    found = trial.call()
    trial.expect(bool(found), "it is empty")
    trial.expect(told is None or found == told, f"it is {found!r}, and the manifest says {told!r}")
    trial.equal(trial.call(), found, "the second answer")


@effect("visible_devices_variable")
def visible_devices_variable(trial: Trial) -> None:
    trial.equal(trial.call(), trial.ctx.manifest.visible_devices_variable, "the variable")


@effect("copies_overlap")
def copies_overlap(trial: Trial) -> None:
    found = trial.call(trial.index)
    trial.equal(trial.call(trial.index), found, "the second answer")
    trial.equal(found, trial.ctx.claims("async_copies"), "the answer, by the claim async_copies,")
    seen = _overlap_seen(trial)
    if seen is not None:
        trial.equal(found, seen, "whether a copy was seen to run beside work")


def _overlap_seen(trial: Trial) -> bool | None:
    """Whether a copy from pinned memory can be pending; ``None`` where that cannot be seen."""
    now = getattr(trial.ctx.probe, "now", None)
    if now is None or trial.runtime is None or not trial.has("pin_memory"):
        return None
    token = trial.work()
    pending = token is not None and not token.done()
    trial.finish()
    return pending


@effect("profiler_activity")
def profiler_activity(trial: Trial) -> None:
    found = trial.call()
    trial.equal(trial.call(), found, "the second answer")
    if found is None or (trial.runtime is None and not trial.ctx.manifest.host):
        return
    kind, name = trial.ctx.manifest.device_type, str(found).rpartition(".")[2]
    supported = torch.profiler.supported_activities()  # type: ignore[no-untyped-call]  # torch does not type it
    there = found in supported or name == "PrivateUse1" or name.lower() == kind
    trial.expect(there, f"it is {name}, which this torch does not have")
    trial.expect(name.lower() in (kind, "cpu", "privateuse1"), f"it is {name}, of another type than {kind}")
