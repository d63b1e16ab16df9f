"""``devicekit info``: which backend was chosen and why, and everything it says of itself."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from devicekit.commands.choice import choice_text
from devicekit.contract.environment import VARIABLES, shown
from devicekit.contract.hooks import HOOKS
from devicekit.contract.text import human_bytes
from devicekit.contract.versions import CONTRACT_VERSION, range_text
from devicekit.device import Device, available_memory, device_of
from devicekit.registry.notices import notices
from devicekit.registry.opened import OpenedBackend
from devicekit.registry.probing import probe
from devicekit.registry.request import parse_request
from devicekit.registry.selection import Selection, select
from devicekit.release.settings import read_settings
from devicekit.torchlike.quirks import Quirk

if TYPE_CHECKING:
    from devicekit.runners.checkpoint import ModelDirectory
    from devicekit.runners.probe import ModelSketch


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="devicekit info",
        description="Show which backend is chosen and why, its devices, hooks and memory.",
    )
    parser.add_argument("--device", help="backend, or backend:index; default: DEVICEKIT_BACKEND, or the best")
    parser.add_argument(
        "--plan",
        metavar="MODEL",
        help="also show how a KV pool for the model in this directory is sized; default: not",
    )
    parser.add_argument(
        "--tensor-parallel",
        type=int,
        default=1,
        metavar="N",
        help="with --plan: of each of N ranks that hold the model together; default: %(default)s",
    )
    parser.add_argument(
        "--expert-parallel", action="store_true", help="with --tensor-parallel: whole experts on each rank"
    )
    parser.add_argument(
        "--split-partly",
        action="store_true",
        help="with --tensor-parallel: also a model whose plan leaves its attention whole",
    )
    parser.add_argument(
        "--all", action="store_true", help="say of each backend why it was not chosen; default: in one line"
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of text; default: text")
    options = parser.parse_args(arguments)
    read_settings()  # refuses a wrong one here, where nothing depends on it yet
    selection = select(options.device)
    index = parse_request(options.device)[1] if options.device else None
    shown = range(probe(selection.backend).device_count) if index is None else (index,)
    devices = [device_of(selection.backend, one) for one in shown]
    if options.json:
        print(json.dumps(_document(selection, devices), indent=2))
    else:
        _print(selection, devices, options.all)
    if options.plan:
        _print_plan(options, devices[0])
    return 0


def _document(selection: Selection, devices: list[Device]) -> Mapping[str, object]:
    backend = selection.backend
    return {
        "contract": str(CONTRACT_VERSION),
        "backend": backend.name,
        "distribution": backend.candidate.distribution,
        "version": backend.candidate.version,
        "candidates": [
            {
                "name": report.name,
                "distribution": report.distribution,
                "version": report.version,
                "stage": report.stage.value,
                "verdict": report.verdict.value,
                "reason": report.reason,
                "seconds": round(report.seconds, 6),
            }
            for report in selection.candidates
        ],
        "hooks": {name: name in backend.implemented for name in HOOKS},
        "noop": sorted(backend.manifest.noop),
        "emulated": sorted(backend.manifest.emulated),
        "capabilities": sorted(backend.capabilities),
        "withdrawn": {name: list(hooks) for name, hooks in backend.withdrawn.items()},
        "newer": list(backend.newer),
        "notices": list(notices(backend)),
        "quirks": [quirk.name for quirk in quirks_of(backend)],
        "devices": [_device_document(device) for device in devices],
    }


def quirks_of(backend: OpenedBackend) -> tuple[Quirk, ...]:
    """The vendor traps that a plugin works around in the installed versions, where it keeps a list of them."""
    found = getattr(backend.plugin, "quirks", ())
    return tuple(quirk for quirk in found if isinstance(quirk, Quirk))


def _device_document(device: Device) -> Mapping[str, object]:
    stats = dataclasses.asdict(device.memory_stats())
    del stats["raw"]
    return {
        "index": device.index,
        "torch_device": str(device.torch_device),
        "properties": dataclasses.asdict(device.properties()),
        "memory": dataclasses.asdict(device.memory_info()),
        "available": dataclasses.asdict(available_memory(device)),
        "allocator": {**stats, "state": stats["state"].value},
    }


def _print(selection: Selection, devices: list[Device], everything: bool) -> None:
    backend = selection.backend
    print(selection.explain() if everything else choice_text(selection))
    print(f"\ndevice contract {CONTRACT_VERSION}, plugin accepts {range_text(backend.manifest.contract)}")
    for device in devices:
        _print_device(device)
    present = [name for name in HOOKS if name in backend.implemented]
    print(f"\nhooks present ({len(present)} of {len(HOOKS)}):")
    for name in present:
        notes = [word for word in ("noop", "emulated") if name in getattr(backend.manifest, word)]
        print(f"  {name}{f' ({notes[0]})' if notes else ''}")
    print("hooks missing, and what a device does instead:")
    for name, hook in HOOKS.items():
        if name not in backend.implemented:
            print(f"  {name}: {_WHEN_MISSING[hook.kind.value]}")
    print(f"\ncapabilities claimed: {', '.join(sorted(backend.capabilities)) or 'none'}")
    for name, hooks in backend.withdrawn.items():
        print(f"not {name}: the installed vendor software lacks what {', '.join(hooks)} rests on")
    if backend.newer:
        print(f"newer than this devicekit, and ignored: {', '.join(backend.newer)}")
    for notice in notices(backend):
        print(f"to the plugin's author: {notice}")
    for quirk in quirks_of(backend):
        print(f"quirk {quirk.name}: {quirk.sentence} {quirk.link}")
    set_here = {name: shown(name, os.environ[name]) for name in VARIABLES if name in os.environ}
    if set_here:
        print("environment: " + ", ".join(f"{name}={value}" for name, value in set_here.items()))


_WHEN_MISSING = {
    "ordering": "raises UnsupportedHook",
    "releasing": "does nothing and says so",
    "observing": "answers None, for unknown",
    "required": "cannot be: the plugin would be refused",
}


def _print_device(device: Device) -> None:
    properties, info, stats = device.properties(), device.memory_info(), device.memory_stats()
    print(f"\n{device.name}:{device.index}  {properties.name or 'name unknown'}")
    print(f"  torch device  {device.torch_device}")
    print(
        f"  memory        {human_bytes(info.free)} free of {human_bytes(info.total)} (source: {info.source})"
    )
    print(f"  available     {human_bytes(available_memory(device).bytes)} to a new allocation")
    print(
        f"  allocator     {human_bytes(stats.allocated)} allocated, {human_bytes(stats.reserved)} reserved "
        f"({stats.state.value})"
    )


def _largest_part(directory: ModelDirectory, options: argparse.Namespace) -> ModelSketch:
    """Of the rank that holds most, or the whole model where there is but one."""
    from devicekit.contract.errors import ConfigurationError
    from devicekit.runners.probe import sketch_model
    from devicekit.runners.sharding import Split

    ranks = options.tensor_parallel
    if ranks < 1:
        raise ConfigurationError(f"--tensor-parallel is a number of ranks, 1 or more, not {ranks}.")
    if ranks == 1:
        return sketch_model(directory)
    # Where a vocabulary cannot be shared evenly, the first rank has more of it than the last.
    return sketch_model(
        directory, split=Split(ranks, 0, experts=options.expert_parallel, partly=options.split_partly)
    )


def _print_plan(options: argparse.Namespace, device: Device) -> None:
    from devicekit.engine import EngineConfig, plan_pool
    from devicekit.runners.checkpoint import ModelDirectory

    path = options.plan
    directory = ModelDirectory.open(path)
    sketch = _largest_part(directory, options)
    free = available_memory(device).bytes
    left = None if free is None else free - sketch.weight_bytes
    plan = plan_pool(sketch.layout, directory.limits, left, EngineConfig(), states=sketch.states)
    if (share := sketch.share) is not None:
        print(
            f"\neach of {share.ranks} ranks that hold {path} together, on {device.name}:{device.index} or its like"
        )
        print(f"  weights       {human_bytes(share.held)} of {human_bytes(share.all)}")
        print(f"  query heads   {share.query_heads[0]} of {share.query_heads[1]}")
        print(f"  key heads     {share.kv_heads[0]} of {share.kv_heads[1]}")
        print(f"  collectives   {device.collective_backend() or 'unknown: tensor parallel cannot be had'}")
    print(f"\nKV pool for {path} on {device.name}:{device.index}")
    print(
        f"  {human_bytes(free)} available - {human_bytes(sketch.weight_bytes)} of weights = {human_bytes(left)}"
    )
    print(
        f"  x {plan.fraction:g} - {human_bytes(plan.reserve_bytes)} reserved "
        f"= {human_bytes(plan.usable_bytes)} usable"
    )
    print(
        f"  {plan.bytes_per_token} B a token x {plan.page_size} tokens = {human_bytes(plan.page_bytes)} a page"
    )
    print(f"  {human_bytes(plan.table_bytes)} for the request table of {plan.max_running} requests")
    windowed = ""
    if plan.window_pages is not None:
        window_bytes = human_bytes(plan.window_page_bytes)
        windowed = f", with {plan.window_pages} pages of {window_bytes} for layers with a window"
    print(f"  {plan.num_pages} pages = {plan.num_tokens} tokens{windowed} = {human_bytes(plan.pool_bytes)}")
    print(f"  {human_bytes(plan.unused_bytes)} left over")
