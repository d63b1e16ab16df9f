"""Writes docs/results/tested.md: what was tested on what, from the records of `devicekit.devtools.certify` there.

One row for each record; a backend that has none on hardware says so. The README quotes from this page only.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

ROOT = Path(__file__).resolve().parents[1]
PAGE = ROOT / "docs" / "results" / "tested.md"
_SCHEMA = "devicekit-certify/1"
_HOSTS = ("cpu",)  # the host's own processor is no accelerator
_TOP = """# What was tested on what

Made by `python -m tools.tested` from the records in this folder; each is written by `make device`. *Rehearsal*:
the script was run without an accelerator, which says nothing of any device.

| backend | device | driver | date | Python | torch | transformers | parts | conformance | record |
|---|---|---|---|---|---|---|---|---|---|
"""
_UNTESTED = "no hardware was at hand: tested over a double made from the vendor's interface"


@dataclass(frozen=True, slots=True)
class Record:
    """One run of the script."""

    name: str
    rehearsal: bool
    device: Mapping[str, str]
    surroundings: Mapping[str, object]
    outcomes: Sequence[Mapping[str, object]]

    @property
    def backend(self) -> str:
        """The backend's name; empty if the run did not come so far."""
        label = self.device.get("backend", "")
        return label.split("'")[1] if label.count("'") >= 2 else label

    @property
    def cells(self) -> list[str]:
        """Its line of the table: backend, device, driver, date, versions, parts, verdict, page."""
        packages = cast("Mapping[str, str | None]", self.surroundings["packages"])
        return [
            self.backend or "unknown",
            self.device.get("device", "unknown") + (" (*rehearsal*)" if self.rehearsal else ""),
            self.device.get("driver", "unknown"),
            str(self.surroundings["started"]),
            str(self.surroundings["python"]),
            packages.get("torch") or "absent",
            packages.get("transformers") or "absent",
            self._parts(),
            self._conformance(),
            f"[{self.name}]({self.name}.md)",
        ]

    def _parts(self) -> str:
        ended = [str(one["status"]) for one in self.outcomes]
        return ", ".join(
            f"{ended.count(one)} {one}" for one in ("passed", "failed", "skipped") if one in ended
        )

    def _conformance(self) -> str:
        for one in self.outcomes:
            for note in cast("Sequence[str]", one["notes"]):
                if one["part"] == "conformance" and note.startswith("verdict: "):
                    return note.partition(";")[0].removeprefix("verdict: ")
        return "not judged"


def records(folder: Path) -> list[Record]:
    """Those of a folder, by name."""
    return sorted(_records(folder), key=lambda one: one.name)


def page(folder: Path, backends: Sequence[str]) -> str:
    """The page: a row for each record, and one for each backend without any on hardware."""
    found = records(folder)
    shown = {one.backend for one in found if not one.rehearsal}
    lines = [f"| {' | '.join(one.cells)} |" for one in found]
    untested = [name for name in backends if name not in shown and name not in _HOSTS]
    lines += [f"| {name} | none | | | | | | | | {_UNTESTED} |" for name in untested]
    return _TOP + "\n".join(lines) + "\n"


def first_party() -> list[str]:
    """Names of the backends in plugins/."""
    return sorted(one.parents[1].name for one in ROOT.glob("plugins/*/*/backend.toml"))


def main() -> int:
    """Write the page."""
    PAGE.write_text(page(PAGE.parent, first_party()), encoding="utf-8")
    print(PAGE.relative_to(ROOT))
    return 0


def _records(folder: Path) -> Iterator[Record]:
    for file in folder.glob("*.json"):
        data = json.loads(file.read_text(encoding="utf-8"))
        if isinstance(data, dict) and data.get("schema") == _SCHEMA:
            yield Record(file.stem, data["rehearsal"], data["device"], data["surroundings"], data["outcomes"])


if __name__ == "__main__":
    sys.exit(main())
