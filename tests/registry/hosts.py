"""Hosts of other contract versions, made of this one while it is imported.

`become` runs first thing in a fresh interpreter. A newer host appends one argument to every hook and adds hooks of
each kind and a capability; an older one forgets what came after it. Nothing is written to disk.
"""

from __future__ import annotations

import ast
import importlib.abc
import importlib.util
import sys
from pathlib import Path

from packaging.version import Version

KINDS = {"ordering": "int", "releasing": "None", "observing": "int"}
LATE = "late"  # the argument that a newer host appends to every hook
_CHANGED = ("devicekit.contract.versions", "devicekit.contract.hooks", "devicekit.contract.capabilities")


def become(version: str) -> None:
    """Let the devicekit that is imported after this serve contracts up to ``version``."""
    assert "devicekit" not in sys.modules
    sys.meta_path.insert(0, _Finder(Version(version)))


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self, version: Version) -> None:
        self._version = version

    def find_spec(self, name, path, target=None):
        if name not in _CHANGED:
            return None
        file = Path(path[0]) / f"{name.rpartition('.')[2]}.py"
        return importlib.util.spec_from_file_location(name, file, loader=_Loader(file, self._version))


class _Loader(importlib.abc.Loader):
    def __init__(self, file: Path, version: Version) -> None:
        self._file, self._version = file, version

    def exec_module(self, module) -> None:
        tree = ast.parse(self._file.read_text())
        changed = ast.fix_missing_locations(_Change(self._version).visit(tree))
        exec(compile(changed, str(self._file), "exec"), vars(module))


class _Change(ast.NodeTransformer):
    def __init__(self, version: Version) -> None:
        self._version = version

    def visit_Call(self, node: ast.Call) -> ast.AST | None:
        self.generic_visit(node)
        words = {word.arg: word.value for word in node.keywords}
        if (
            "since" in words
            and isinstance(words["since"], ast.Constant)
            and self._lacks(words["since"].value)
        ):
            return None
        if isinstance(node.func, ast.Name) and node.func.id == "_table" and self._version > _now():
            node.args.append(
                _expression(f"Capability('novelty', 'New.', ('ordering_of',), since='{self._version}')")
            )
        return node

    def visit_Assign(self, node: ast.Assign) -> ast.AST:
        if isinstance(node.targets[0], ast.Name) and node.targets[0].id == "CONTRACT_VERSION":
            node.value = _expression(f"Version({str(self._version)!r})")
            return node
        return self.generic_visit(node)

    def visit_ClassDef(self, node: ast.ClassDef) -> ast.AST:
        if node.name != "BackendSpec":
            return self.generic_visit(node)
        node.body = [one for one in node.body if not isinstance(one, ast.FunctionDef) or self._change(one)]
        if self._version > _now():
            source = "class Spec:\n" + "\n".join(
                f"    @hook(HookKind.{kind.upper()}, 'New', since='{self._version}')\n"
                f"    def {kind}_of(self, index: int) -> {result}:\n        'New.'\n"
                for kind, result in KINDS.items()
            )
            node.body += ast.parse(source).body[0].body
        return node

    def _change(self, function: ast.FunctionDef) -> bool:
        declared = function.decorator_list[0]
        words = {word.arg: word for word in declared.keywords}
        if "since" in words and self._lacks(words["since"].value.value):
            return False
        added = words["added"].value if "added" in words else ast.Dict(keys=[], values=[])
        kept = [
            (key, value)
            for key, value in zip(added.keys, added.values, strict=True)
            if not self._lacks(value.value)
        ]
        dropped = {
            key.value for key, value in zip(added.keys, added.values, strict=True) if self._lacks(value.value)
        }
        function.args.args = [one for one in function.args.args if one.arg not in dropped]
        if self._version > _now():
            kept.append((ast.Constant(LATE), ast.Constant(str(self._version))))
            function.args.args.append(ast.arg(LATE, ast.parse("int | None", mode="eval").body))
        new = ast.Dict(keys=[key for key, _ in kept], values=[value for _, value in kept])
        if "added" in words:
            words["added"].value = new
        else:
            declared.keywords.append(ast.keyword("added", new))
        return True

    def _lacks(self, since: str) -> bool:
        return Version(since) > self._version


def _expression(source: str) -> ast.expr:
    return ast.parse(source, mode="eval").body


def _now() -> Version:
    """This tree's own contract."""
    text = (Path(__file__).parents[2] / "devicekit" / "contract" / "versions.py").read_text()
    return Version(text.partition('CONTRACT_VERSION = Version("')[2].partition('"')[0])
