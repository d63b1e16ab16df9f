"""Each part can be taken alone: through its front door, in a few lines, on any device."""

from __future__ import annotations

import ast

import pytest

import devicekit
from tests.docs.blocks import CHECKOUT, Block, blocks_of

PROGRAMS = blocks_of(CHECKOUT / "docs" / "parts.md")
PARTS = {"memory", "scheduling", "release", "residency", "oom", "observe"}
SUPPORT = {"devicekit", "numpy", "torch"}


def rooms(program: Block) -> set[str]:
    """The modules of devicekit that a program imports."""
    found = {
        name
        for node in ast.walk(ast.parse(program.text))
        if isinstance(node, (ast.Import, ast.ImportFrom))
        for name in (
            [one.name for one in node.names] if isinstance(node, ast.Import) else [node.module or ""]
        )
    }
    return found - SUPPORT


def test_every_part_has_a_program() -> None:
    languages = [one.language for one in PROGRAMS]
    assert languages == ["python"] * len(PARTS)
    assert {one.removeprefix("devicekit.") for program in PROGRAMS for one in rooms(program)} == PARTS


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_a_program_goes_through_front_doors_and_is_short(program: Block) -> None:
    assert all(one.count(".") == 1 and one.startswith("devicekit.") for one in rooms(program))
    statements = sum(isinstance(node, ast.stmt) for node in ast.walk(ast.parse(program.text)))
    assert statements <= 18


@pytest.mark.parametrize("program", PROGRAMS, ids=str)
def test_a_program_runs_on_an_accelerator_too(
    program: Block, sim_device: devicekit.Device, capsys: pytest.CaptureFixture[str]
) -> None:
    with devicekit.use(sim_device):
        exec(compile(program.text, str(program), "exec"), {"__name__": "docs"})
    printed = capsys.readouterr().out
    assert "None None" not in printed  # the allocator is one that counts
    if "devicekit.residency" in rooms(program):
        assert printed.split("\n")[0].startswith("encoder left after encode and gave back ")
