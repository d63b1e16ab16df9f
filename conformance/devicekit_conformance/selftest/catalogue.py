"""Lists the faulty backends without importing them: each is a class with a docstring and a ``caught_by``."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

_PROBE = "devicekit_conformance.simulated:SimProbe"


@dataclass(frozen=True)
class Faulty:
    """One faulty backend, and the requirement that must catch it."""

    address: str
    fault: str
    caught_by: str
    probe: str = _PROBE

    @property
    def name(self) -> str:
        return self.address.rsplit(":", 1)[1]


def catalogue() -> tuple[Faulty, ...]:
    """Every faulty backend of this package, in the order of its files."""
    found: list[Faulty] = []
    for path in sorted(Path(__file__).parent.glob("*.py")):
        for node in ast.parse(path.read_text(encoding="utf-8")).body:
            if isinstance(node, ast.ClassDef) and (caught_by := _caught_by(node)) is not None:
                address = f"{__package__}.{path.stem}:{node.name}"
                found.append(Faulty(address, ast.get_docstring(node) or "", caught_by))
    return tuple(found)


def _caught_by(node: ast.ClassDef) -> str | None:
    for statement in node.body:
        if (
            isinstance(statement, ast.Assign)
            and isinstance(statement.targets[0], ast.Name)
            and statement.targets[0].id == "caught_by"
            and isinstance(statement.value, ast.Constant)
        ):
            return str(statement.value.value)
    return None
