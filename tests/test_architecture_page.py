"""The walk through the code names files that exist, and what it says stands in them."""

from __future__ import annotations

import re
from pathlib import Path

import devicekit

ROOT = Path(devicekit.__file__).parent.parent
PAGE = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
NAMED = sorted(set(re.findall(r"`([\w/]+\.(?:py|toml))`", PAGE)))


def file_of(name: str) -> Path:
    inside = ROOT / "devicekit" / name
    return inside if inside.exists() else ROOT / name


def test_every_file_that_the_page_names_exists() -> None:
    assert len(NAMED) > 30
    assert [name for name in NAMED if not file_of(name).is_file()] == []


def test_every_class_and_method_that_the_page_names_is_there() -> None:
    sources = "\n".join(file_of(name).read_text(encoding="utf-8") for name in NAMED if name.endswith(".py"))
    for owner, method in re.findall(r"`([A-Z]\w+)(?:\.(\w+))?`", PAGE):
        assert re.search(rf"^class {owner}\b", sources, re.MULTILINE), owner
        assert not method or re.search(rf"^    def {method}\(", sources, re.MULTILINE), f"{owner}.{method}"


def test_owners_stand_in_the_files_that_the_table_names() -> None:
    rows = re.findall(r"^\| .* \| `(\w+)` \| `([\w/]+\.py)` \|$", PAGE, re.MULTILINE)
    assert len(rows) == 9
    for owner, name in rows:
        assert f"\nclass {owner}" in file_of(name).read_text(encoding="utf-8")
