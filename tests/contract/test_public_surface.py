"""What vendors write code against, as it was last decided: any change of it is a decision, made here on purpose.

After a change that is meant: ``python -m tests.contract.test_public_surface``, then read the difference. Something
removed or renamed needs a release with a DeprecationWarning first; see docs/stability.md.
"""

from __future__ import annotations

import dataclasses
import importlib
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

from devicekit.contract import CAPABILITIES, HOOKS, Manifest

SNAPSHOT = Path(__file__).parent / "public_surface.txt"
MODULES = ("devicekit.contract", "devicekit.contract.errors", "devicekit.torchlike", "devicekit.testing")
PROBE = "devicekit_conformance.probe"


def surface() -> Iterator[str]:
    for spec in HOOKS.values():
        yield f"hook {spec.declaration}, {spec.kind.value}, since {spec.since}, appended {dict(spec.added)}"
    for one in CAPABILITIES.values():
        yield f"capability {one.name}: {', '.join(one.hooks)}, since {one.since}"
    for entry in dataclasses.fields(Manifest):
        yield f"manifest key {entry.name}: {entry.type}"
    for name in MODULES:
        module = importlib.import_module(name)
        public = getattr(module, "__all__", None) or [
            one for one, found in vars(module).items() if inspect.isclass(found) and found.__module__ == name
        ]
        for one in sorted(public):
            yield f"{name}.{one}{_shape(getattr(module, one))}"
    probe = importlib.import_module(PROBE).Probe
    for one, found in sorted(vars(probe).items()):
        if not one.startswith("_") and callable(found):
            yield f"{PROBE}.Probe.{one}{_signature(found)}"


def _shape(found: object) -> str:
    if dataclasses.is_dataclass(found):
        return "(" + ", ".join(f"{one.name}: {one.type}" for one in dataclasses.fields(found)) + ")"
    if inspect.isclass(found) and issubclass(found, BaseException):
        return f"({', '.join(one.__name__ for one in found.__bases__)})"
    if inspect.isclass(found):
        return "." + ", ".join(sorted(one for one in vars(found) if not one.startswith("_")))
    return _signature(found) if inspect.isfunction(found) else ""


def _signature(found: object) -> str:
    return re.sub(r" at 0x\w+", "", str(inspect.signature(found)))  # type: ignore[arg-type]


def test_the_surface_for_vendors_is_the_one_that_was_decided() -> None:
    assert list(surface()) == SNAPSHOT.read_text(encoding="utf-8").splitlines()


def test_every_field_of_every_record_is_described() -> None:
    page = (Path(__file__).parents[2] / "docs" / "stability.md").read_text(encoding="utf-8")
    described: dict[str, set[str]] = {}
    record = ""
    for line in page.split("## Fields and their units")[1].splitlines():
        cells = [cell.strip() for cell in line.split("|")]
        if len(cells) > 4 and "`" in cells[2]:
            record = cells[1].strip("`") or record
            described.setdefault(record, set()).update(re.findall(r"`(\w+)`", cells[2]))
    module = importlib.import_module("devicekit.contract.records")
    records = {name: one for name, one in vars(module).items() if dataclasses.is_dataclass(one)}
    assert described == {
        name: {field.name for field in dataclasses.fields(one)} for name, one in records.items()
    }


if __name__ == "__main__":
    SNAPSHOT.write_text("\n".join(surface()) + "\n", encoding="utf-8")
