"""``python -m tools.public_names``: writes docs/reference, a page for each room with every name it exports.

The pages hold names only; what is said of each is its docstring, which the site's generator puts there. They are
written whenever the site is built, and are no part of the repository.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import itertools
import sys
from functools import cache
from types import ModuleType

from tools.reference import CHECKOUT

FOLDER = CHECKOUT / "docs" / "reference"
ROOMS = (
    "devicekit",
    "devicekit.contract",
    "devicekit.contract.errors",
    "devicekit.device",
    "devicekit.registry",
    "devicekit.engine",
    "devicekit.scheduling",
    "devicekit.memory",
    "devicekit.weights",
    "devicekit.runners",
    "devicekit.text",
    "devicekit.release",
    "devicekit.oom",
    "devicekit.residency",
    "devicekit.observe",
    "devicekit.fleet",
    "devicekit.ray_serve",
    "devicekit.server",
    "devicekit.torchlike",
    "devicekit.testing",
    "devicekit.devtools.audit",
    "devicekit_conformance",
    "devicekit_conformance.probe",
)


def main() -> int:
    """Write every page; exit status 0."""
    FOLDER.mkdir(exist_ok=True)
    made = pages()
    for old in FOLDER.glob("*.rst"):
        if old.name not in made:
            old.unlink()
    for name, text in made.items():
        path = FOLDER / name
        if not path.exists() or path.read_text(encoding="utf-8") != text:  # an old date keeps the built page
            path.write_text(text, encoding="utf-8")
    return 0


def pages() -> dict[str, str]:
    """The pages, by file name."""
    written = {f"{room}.rst": _page(room) for room in ROOMS}
    return {"index.rst": _index(), **written}


@cache
def exported(room: str) -> list[str]:
    """The names that a room offers: those of ``__all__``, or those that it defines itself."""
    module = importlib.import_module(room)
    listed = getattr(module, "__all__", None)
    return sorted(listed if listed is not None else _defined(module))


def _defined(module: ModuleType) -> list[str]:
    return [
        name
        for name, value in vars(module).items()
        if not name.startswith("_") and getattr(value, "__module__", None) == module.__name__
    ]


def _index() -> str:
    lines = [
        *_titled("Reference"),
        "Every public name, a page for each room of the package. Hooks have :doc:`a page of their own </hooks>`.",
        "Names that are not here may change without notice; see :doc:`versions and stability </stability>`.",
        "",
    ]
    for room in ROOMS:
        lines += [f":doc:`{room}`", f"    {_sentence(room)}", ""]
    lines += [".. toctree::", "   :hidden:", "", *(f"   {room}" for room in ROOMS)]
    return "\n".join(lines) + "\n"


def _page(room: str) -> str:
    lines = [*_titled(room), _sentence(room), ""]
    module = importlib.import_module(room)
    elsewhere: list[str] = []
    for name in exported(room):
        value = getattr(module, name)
        home = _first_room(name, value)
        if home != room:
            elsewhere.append(f":py:obj:`{name} <{home}.{name}>`")
            continue
        lines += _directive(room, name, value)
    if elsewhere:
        lines[3:3] = ["It also exports what is described elsewhere:", f"{', '.join(elsewhere)}.", ""]
    return "\n".join(lines)


def _first_room(name: str, value: object) -> str:
    """The first of the rooms that export this very thing, where it is described."""
    return next(
        room
        for room in ROOMS
        if name in exported(room) and getattr(importlib.import_module(room), name) is value
    )


def _directive(room: str, name: str, value: object) -> list[str]:
    if inspect.isclass(value):
        kind = "autoexception" if issubclass(value, BaseException) else "autoclass"
        return [f".. {kind}:: {room}.{name}", "   :members:", "   :undoc-members:", ""]
    if inspect.isroutine(value):
        return [f".. autofunction:: {room}.{name}", ""]
    # What stands below a constant in its source: the generator looks only where a name is exported.
    return [f".. py:data:: {room}.{name}", "", *(f"   {line}" for line in said_of(name).splitlines()), ""]


@cache
def said_of(name: str) -> str:
    """The docstring below a constant's definition; empty where there is none."""
    sources = (CHECKOUT / "devicekit", CHECKOUT / "conformance" / "devicekit_conformance")
    for path in sorted(path for folder in sources for path in folder.rglob("*.py")):
        text = path.read_text(encoding="utf-8")
        if name not in text:
            continue
        body = ast.parse(text).body
        for statement, following in itertools.pairwise(body):
            if isinstance(following, ast.Expr) and name in _bound_by(statement):
                found = following.value.value if isinstance(following.value, ast.Constant) else None
                return inspect.cleandoc(found) if isinstance(found, str) else ""
    return ""


def _bound_by(statement: ast.stmt) -> list[str]:
    targets = (
        statement.targets
        if isinstance(statement, ast.Assign)
        else [statement.target]
        if isinstance(statement, ast.AnnAssign)
        else []
    )
    return [one.id for one in targets if isinstance(one, ast.Name)]


def _titled(title: str) -> list[str]:
    return [title, "=" * len(title), ""]


def _sentence(room: str) -> str:
    return (importlib.import_module(room).__doc__ or "").strip().split("\n")[0].rstrip(":")


if __name__ == "__main__":
    sys.exit(main())
