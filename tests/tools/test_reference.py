from __future__ import annotations

import shutil

import pytest

from devicekit.contract import HOOKS, hooks
from devicekit.contract.handles import DeviceGraph, Event, MemoryPool, Stream, TimingEvent
from devicekit_conformance.frozen_contract import profile_of
from tools.reference import CHECKOUT, main, read_support, render


def test_the_page_in_the_repository_is_the_one_the_code_writes():
    written = (CHECKOUT / "docs" / "hooks.md").read_text(encoding="utf-8")
    assert written == render(read_support(CHECKOUT / "plugins")), "run: python -m tools.reference"


def test_what_holds_for_all_hooks_and_for_what_they_return_is_on_the_page():
    page = render([])
    assert (hooks.__doc__ or "").partition("\n\n")[2].strip() in page
    for protocol in (Stream, Event, TimingEvent, DeviceGraph, MemoryPool):
        section = page.split(f"### {protocol.__name__}\n")[1].split("\n### ")[0]
        methods = [name for name in vars(protocol) if not name.startswith("_")]
        assert [line.split("(")[0] for line in section.splitlines() if line.startswith("- `")] == [
            f"- `{name}" for name in methods
        ]


@pytest.mark.parametrize("hook", HOOKS)
def test_every_hook_has_its_section(hook):
    page = render([])
    section = page.split(f"### {hook}\n")[1].split("\n### ")[0]
    assert HOOKS[hook].declaration in section
    assert HOOKS[hook].doc in section
    assert f"- kind: {HOOKS[hook].kind.value}" in section
    assert f"- since: {HOOKS[hook].since}" in section
    assert "- when missing: " in section
    assert f"- judged in: profile `{profile_of(hook)}`" in section


def test_the_table_tells_a_no_op_and_an_emulation_from_the_vendors_own():
    page = render(read_support(CHECKOUT / "plugins"))
    rows = [[cell.strip() for cell in line.split("|")] for line in page.splitlines() if line.startswith("|")]
    column = rows[0].index("cpu")
    marks = {row[1].split("`")[1]: row[column] for row in rows if row[1].startswith("[")}
    assert marks.keys() == HOOKS.keys()
    assert marks["synchronize"] == "no-op"
    assert marks["memory_info"] == "emulated"
    assert marks["get_rng_state"] == "yes"
    assert marks["create_stream"] == "no"


def test_the_command_writes_the_page(tmp_path, capsys):
    shutil.copytree(CHECKOUT / "plugins" / "cpu", tmp_path / "plugins" / "cpu")
    output = tmp_path / "docs" / "hooks.md"
    assert main(["--output", str(output), "--plugins", str(tmp_path / "plugins")]) == 0
    assert capsys.readouterr().out.strip() == str(output)
    assert output.read_text(encoding="utf-8").startswith("# Hooks\n")
