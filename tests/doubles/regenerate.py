"""Writes the surfaces that doubles are held to, from the packages themselves.

    python -m tests.doubles.regenerate --installed                      # torch's own modules, by introspection
    python -m tests.doubles.regenerate npu --wheel torch_npu-2.13.0.whl # a package that cannot be imported here
    python -m tests.doubles.regenerate npu --wheel torch_npu-2.7.1.whl --only-absent  # what an older version lacks

A wheel's sources are read and never run. Functions written in C publish no parameters, and fields that exist only
in C (``device_properties``) are kept as recorded.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import json
import re
from pathlib import Path
from types import ModuleType

from tests.doubles.static import extract, read_sources
from tests.doubles.wanted import CLASSES, MEMORY, PRIVATE, SOURCES, Rows

FOLDER = Path(__file__).parent / "surfaces"
# -- Installed packages ---------------------------------------------------------------------------------------


def introspect(name: str) -> dict[str, object]:
    """The surface of an installed module."""
    module = importlib.import_module(SOURCES[name])
    functions: dict[str, Rows | None] = {}
    classes: dict[str, object] = {}
    for key, value in sorted(vars(module).items()):
        if inspect.isclass(value):
            if key in CLASSES:
                classes[key] = _class(value)
        elif callable(value) and _is_part_of(module.__name__, value, key):
            functions[key] = _rows(value)
    memory = getattr(module, "memory", None)
    return {
        "functions": functions,
        "classes": classes,
        "memory": {key: _rows(value) for key, value in sorted(vars(memory).items()) if key in MEMORY}
        if isinstance(memory, ModuleType)
        else {},
    }


def _is_part_of(module: str, value: object, key: str) -> bool:
    home = getattr(value, "__module__", None) or ""
    is_function = inspect.isfunction(inspect.unwrap(value))  # type: ignore[arg-type]  # a cached one is no function
    return key in PRIVATE or (not key.startswith("_") and is_function and home.startswith(module))


def _class(found: type) -> dict[str, object]:
    # Whichever of the two names its parameters; without a vendor's library the other is a placeholder.
    makers = [one for one in (found.__new__, found.__init__) if inspect.isfunction(one)]  # type: ignore[misc]
    calls = [_rows(one, skip=1) for one in makers]
    named = [rows for rows in calls if rows != _ANYTHING]
    methods = {
        key: _rows(value, skip=0 if isinstance(inspect.getattr_static(found, key), classmethod) else 1)
        for key, value in inspect.getmembers(found, callable)
        if not key.startswith("_") and key not in ("add_note", "with_traceback")
    }
    return {"call": (named or calls or [None])[0], "methods": methods}


_ANYTHING: Rows = [["args", "var_positional", False], ["kwargs", "var_keyword", False]]


def _rows(function: object, skip: int = 0) -> Rows | None:
    try:
        parameters = list(inspect.signature(function).parameters.values())[skip:]  # type: ignore[arg-type]
    except (TypeError, ValueError):
        return None
    return [[one.name, one.kind.name.lower(), one.default is not one.empty] for one in parameters]


# -- Writing --------------------------------------------------------------------------------------------------


def merge(name: str, fresh: dict[str, object], version: str, source: str, *, only_absent: bool) -> None:
    """Write what was found into the committed file, keeping what only C knows."""
    path = FOLDER / f"{name}.json"
    record = json.loads(path.read_text(encoding="utf-8"))
    functions, classes = fresh["functions"], fresh["classes"]
    assert isinstance(functions, dict)
    assert isinstance(classes, dict)
    if not only_absent:
        for key, value in classes.items():
            kept = record["classes"].get(key, {})
            value["properties"] = kept.get("properties", [])
            c_methods = {k: v for k, v in kept.get("methods", {}).items() if k == "priority_range"}
            value["methods"] = {**value["methods"], **c_methods}
        record |= {"functions": functions, "classes": classes, "memory": fresh["memory"], "source": source}
    have = {*record["functions"], *record["classes"]}
    absent = sorted(key for key in have - {*functions, *classes} if not key.startswith("_"))
    absent += [f"memory.{key}" for key in record["memory"] if key not in fresh["memory"]]  # type: ignore[operator]
    record["absent"][version] = absent
    path.write_text(readable(record), encoding="utf-8")


def readable(record: dict[str, object]) -> str:
    """JSON with a line for each name, so that a change of a vendor's reads as one in a diff."""
    parts = []
    for key, value in record.items():
        text = json.dumps(value)
        if isinstance(value, dict):
            lines = ",\n".join(f"  {json.dumps(name)}: {json.dumps(one)}" for name, one in value.items())
            text = f"{{\n{lines}\n }}" if lines else "{}"
        parts.append(f" {json.dumps(key)}: {text}")
    return "{\n" + ",\n".join(parts) + "\n}\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("name", nargs="?", choices=sorted(SOURCES))
    parser.add_argument(
        "--installed", action="store_true", help="torch's own modules, from the installed torch"
    )
    parser.add_argument("--wheel", type=Path, help="a wheel, or a folder that holds the package")
    parser.add_argument("--version", help="default: from the wheel's file name")
    parser.add_argument("--only-absent", action="store_true", help="record only what this version lacks")
    options = parser.parse_args()
    if options.installed:
        import torch

        release = torch.__version__.split("+")[0]
        for name in ("cuda", "xpu", "mps", "mtia", "accelerator"):
            merge(name, introspect(name), release, f"torch=={release}", only_absent=options.only_absent)
        return
    if options.name is None or options.wheel is None:
        parser.error("name a surface and a --wheel, or say --installed")
    named = re.match(r"[^-]+-(\d+(?:\.\d+)*)", options.wheel.name)
    version = options.version or (named[1] if named else None)
    if version is None:
        parser.error("the version cannot be read off the file name: give --version")
    fresh = extract(options.name, read_sources(options.wheel))
    merge(options.name, fresh, version, f"{options.wheel.name}", only_absent=options.only_absent)


if __name__ == "__main__":
    main()
