"""Pages that are read from the first line to the last: code and commands run in the order in which they stand."""

from __future__ import annotations

from pathlib import Path

import pytest

from devicekit.cli import main
from tests.docs.blocks import CHECKOUT, blocks_of, commands_in

PAGES = [CHECKOUT / "docs/tutorials/timeline.md"]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_page_runs_from_the_first_line_to_the_last(
    page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run_in_order(page)


def run_in_order(page: Path) -> None:
    names: dict[str, object] = {}
    for block in blocks_of(page):
        if block.needs is not None:
            continue
        if block.language == "python":
            names = names if block.continues else {"__name__": "docs"}
            exec(compile(block.text, str(block), "exec"), names)
        elif block.language == "bash":
            for words in commands_in(block.text):
                if words[0] == "devicekit":
                    assert main(words[1:]) == 0, f"{block}: {' '.join(words)}"


def test_what_the_page_on_memory_writes_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    run_in_order(CHECKOUT / "docs/memory.md")
    assert "half way" in (tmp_path / "memory.html").read_text()
    assert (tmp_path / "baseline.json").exists()
