"""The table of replacements: complete, and every target is there."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import devicekit
from devicekit.devtools.audit import audit
from devicekit.devtools.audit.page import PAGE, render
from devicekit.devtools.audit.table import ANNOTATIONS, PROPERTIES, REPLACEMENTS, STATISTICS, replacement_of
from devicekit.torchlike.statistics import KEYS

SURFACES = Path(__file__).parents[2] / "doubles" / "surfaces"
# What is there for the module's own use.
_NOT_FOR_CALLERS = {
    "DEVICE_REQUIREMENT",
    "Device",
    "PYTORCH_RELEASES_CODE_CC",
    "classproperty",
}


def names_of(surface: str) -> set[str]:
    parts = json.loads((SURFACES / f"{surface}.json").read_text())
    every = {*parts["functions"], *parts["classes"], *parts["attributes"], *parts.get("submodules", ())}
    return {name for name in every if not name.startswith("_")}


@pytest.mark.parametrize("vendor", ["cuda", "xpu"])
def test_every_public_name_of_the_module_has_a_row(vendor: str) -> None:
    names = names_of(vendor) - _NOT_FOR_CALLERS
    assert len(names) > 50
    assert [name for name in sorted(names) if replacement_of(f"torch.{vendor}.{name}") is None] == []


def test_every_row_says_what_to_write() -> None:
    assert all(row.sentence for row in REPLACEMENTS.values())
    assert len({row.name for row in REPLACEMENTS.values()}) == len(REPLACEMENTS)


@pytest.mark.parametrize("row", [row for row in REPLACEMENTS.values() if row.code], ids=lambda row: row.name)
def test_what_is_to_be_written_exists(row) -> None:
    for node in ast.walk(row.expression):
        if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
            continue
        owner = {"device": devicekit.Device, "devicekit": devicekit}.get(node.value.id)
        if owner is not None and node.attr not in ("index", "torch_device"):
            assert hasattr(owner, node.attr), f"{ast.unparse(node)} does not exist"
    names = {node.id for node in ast.walk(row.expression) if isinstance(node, ast.Name)}
    assert names <= {"device", "devicekit", "torch", *row.parameters}


def test_what_an_advice_names_exists() -> None:
    for row in REPLACEMENTS.values():
        for owner, name in re.findall(r"\b(device|devicekit)\.(\w+)", row.sentence):
            there = devicekit.Device if owner == "device" else devicekit
            assert name in ("index", "torch_device") or hasattr(there, name), f"{row.name}: {row.sentence}"


def test_fields_and_types_exist() -> None:
    assert all(hasattr(devicekit, code.partition(".")[2]) for code in ANNOTATIONS.values())
    assert all(field in devicekit.MemoryStats.__dataclass_fields__ for field in STATISTICS.values())
    assert all(field in devicekit.DeviceProperties.__dataclass_fields__ for field in PROPERTIES.values())
    assert {field: key for key, field in STATISTICS.items()}.items() <= dict(KEYS).items()


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == render()


@pytest.mark.parametrize(
    ("source", "instead"),
    [
        ("torch.backends.cuda.matmul.allow_tf32 = True", "torch.set_float32_matmul_precision"),
        ("torch.backends.cuda.enable_flash_sdp(False)", "torch.nn.attention.sdpa_kernel"),
        (
            "torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False",
            "set it beside that vendor's",
        ),
        ("torch.backends.cudnn.benchmark = True", "set it beside that vendor's"),
        ("torch.backends.cudnn.deterministic = True", "torch.use_deterministic_algorithms"),
        ("torch.backends.mps.is_available()", "devicekit.accelerator_available()"),
        ("module = torch.cuda", "torch.get_device_module"),
        ("patch('torch.cuda')", "torch.get_device_module"),
        ("hasattr(torch, 'xpu')", "devicekit.accelerator_available()"),
        ("torch.cuda._device_count_nvml()", "devicekit.accelerator_count()"),
    ],
)
def test_what_stands_beside_the_module_has_a_replacement_too(tmp_path, source: str, instead: str) -> None:
    file = tmp_path / "engine.py"
    file.write_text(f"import torch\nfrom unittest.mock import patch\n{source}\n", encoding="utf-8")
    report = audit([file])
    assert [one.rule for one in report.new] == ["DK001"]
    assert instead in report.new[0].instead
    assert "1 of 1 uses of vendor modules (100.0 %)" in report.as_statistics()


def test_a_name_that_nobody_knows_counts_as_uncovered(tmp_path) -> None:
    file = tmp_path / "engine.py"
    file.write_text("import torch\ntorch.cuda.no_such_thing()\ntorch.cuda.synchronize()\n", encoding="utf-8")
    assert "1 of 2 uses of vendor modules (50.0 %)" in audit([file]).as_statistics()
