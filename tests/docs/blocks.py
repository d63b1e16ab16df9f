"""The fenced blocks of a page, with the marks in front of them.

A block that does not run as it stands says so in a comment on the line before it:

- ``<!-- needs: WHAT -->``: it is read (compiled, parsed) and not run, except that for ``server`` the test serves
  the page's model, and for ``torchrun`` it is one rank;
- ``<!-- continues -->``: it uses names of the block before.
"""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]
PAGES = sorted(
    [
        CHECKOUT / "README.md",
        CHECKOUT / "conformance/README.md",
        *(CHECKOUT / "docs").glob("*.md"),
        *(CHECKOUT / "docs/tutorials").glob("*.md"),
        *(CHECKOUT / "docs/hosts").glob("*.md"),
    ]
)
_MARK = re.compile(r"<!-- (?:(needs): ([^>]+)|(continues)) -->")


@dataclass(frozen=True)
class Block:
    """One fenced block."""

    page: Path
    line: int  # of its first line of text
    language: str
    text: str
    needs: str | None = None
    continues: bool = False

    def __str__(self) -> str:
        return f"{self.page.relative_to(CHECKOUT)}:{self.line}"


def blocks_of(page: Path) -> list[Block]:
    """Every fenced block of a page, in order."""
    return list(_blocks(page, page.read_text(encoding="utf-8").splitlines()))


def _blocks(page: Path, lines: list[str]) -> Iterator[Block]:
    start: int | None = None
    needs: str | None = None
    continues = False
    language = ""
    for number, line in enumerate(lines, 1):
        if line.startswith("```") and start is None:
            start, language = number, line[3:].strip()
        elif line.startswith("```") and start is not None:
            text = "\n".join(lines[start : number - 1]) + "\n"
            yield Block(page, start + 1, language, text, needs, continues)
            start, needs, continues = None, None, False
        elif start is None and (mark := _MARK.fullmatch(line.strip())) is not None:
            needs, continues = mark[2] or needs, continues or bool(mark[3])
        elif start is None and line.strip() and not line.startswith("<!--"):
            assert (needs, continues) == (None, False), (
                f"{page.name}:{number}: a mark with no block behind it"
            )
    assert start is None, f"{page.name}: a block that is never closed"


def commands_in(text: str) -> list[list[str]]:
    """The commands of a shell block, as words: continued lines joined, comments and prompts left out."""
    commands: list[list[str]] = []
    waiting = ""
    for line in text.splitlines():
        waiting += line if not waiting else f"\n{line}"
        if waiting.endswith("\\"):
            waiting = waiting[:-1]
            continue
        try:
            words = shlex.split(waiting, comments=True)
        except ValueError:  # a quotation that goes on in the next line
            continue
        waiting = ""
        if words:
            commands.append(words)
    assert not waiting, f"never ends: {waiting}"
    return commands


def typed_in(text: str) -> str:
    """What a person types in a terminal session: the lines behind prompts, and those that continue them."""
    typed: list[str] = []
    for line in text.splitlines():
        prompt = re.match(r"\w*\$ +(.*)", line)
        if prompt is not None:
            typed.append(prompt[1])
        elif typed and typed[-1].endswith("\\"):
            typed.append(line)
    return "\n".join(typed) + "\n"
