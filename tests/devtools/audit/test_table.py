"""The table of replacements: complete, and every target is there."""

from __future__ import annotations

import ast
import json
from pathlib import Path

import pytest

import devicekit
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
    "has_half",
    "has_magma",
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


def test_fields_and_types_exist() -> None:
    assert all(hasattr(devicekit, code.partition(".")[2]) for code in ANNOTATIONS.values())
    assert all(field in devicekit.MemoryStats.__dataclass_fields__ for field in STATISTICS.values())
    assert all(field in devicekit.DeviceProperties.__dataclass_fields__ for field in PROPERTIES.values())
    assert {field: key for key, field in STATISTICS.items()}.items() <= dict(KEYS).items()


def test_the_page_is_what_the_table_says() -> None:
    assert PAGE.read_text(encoding="utf-8") == render()
