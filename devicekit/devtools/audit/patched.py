"""What a file puts something else in place of, as tests do."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator

from devicekit.devtools.audit import words
from devicekit.devtools.audit.marks import Marks
from devicekit.devtools.audit.syntax import arguments_of, called_name

_MAY_PATCH = re.compile(
    rf"setattr|delattr|[\"']torch\.|patch|\bdel\b|\.(?:{'|'.join(words.DEVICES)})\.\w+\s*(?::[^=]*)?="
)
# What a path as text can be given to by another name than its own, so that each such text counts.
_BY_TEXT = re.compile(r"\bimport\b.*\bmock\b|\bmock\.|\bpatch(?:\.\w+)*\(|\bmonkeypatch\b|\bmocker\b")
_PATCHES = re.compile(r"patch|setattr|delattr|setitem|delitem|mock|replace|modules\.|reload")


def patched(tree: ast.Module, text: str, marks: Marks) -> set[str]:
    """Names of vendor modules that the file itself puts something else in place of; "*" for all.

    Code that replaces ``torch.cuda.synchronize`` to watch it would not see the new call. A path as text is no
    replacement where nothing in the file takes one to replace it, as in a list of types that may be unpickled.
    """
    found: set[str] = set()
    if not _MAY_PATCH.search(text):
        return found
    every_text = _BY_TEXT.search(text) is not None
    for node in marks.walk(tree):
        if isinstance(node, ast.Constant):
            found.update(_named(node) if every_text else ())
        elif isinstance(node, ast.Subscript) and isinstance(node.ctx, (ast.Store, ast.Del)):
            found.update(_named(node.slice) if called_name(node.value).endswith("modules") else ())
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
            value = node.value
            if isinstance(value, ast.Attribute) and value.attr in words.DEVICES:
                found.add(node.attr)
        elif isinstance(node, ast.Call) and _PATCHES.search(called_name(node.func)):
            found.update(_by_call(node))
    return found


def _named(node: ast.AST) -> Iterator[str]:
    """The name of a vendor module that a text spells."""
    if isinstance(node, ast.Constant) and isinstance(node.value, str) and words.PATH.fullmatch(node.value):
        rest = node.value.split(".")[2:]
        yield rest[0] if rest else "*"


def _by_call(node: ast.Call) -> Iterator[str]:
    """What ``patch("torch.cuda.x")``, ``setattr(torch.cuda, "x", ...)`` and their like replace."""
    for one in arguments_of(node):
        yield from _named(one)
    if len(node.args) > 1:
        owner, key = node.args[:2]
        if isinstance(owner, ast.Attribute) and owner.attr in words.DEVICES:
            yield key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else "*"
