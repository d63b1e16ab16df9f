"""What a file puts something else in place of, as tests do."""

from __future__ import annotations

import ast
import re

from devicekit.devtools.audit import words

_MAY_PATCH = re.compile(
    rf"setattr|delattr|[\"']torch\.|patch|\bdel\b|\.(?:{'|'.join(words.DEVICES)})\.\w+\s*(?::[^=]*)?="
)


def patched(tree: ast.Module, text: str) -> set[str]:
    """Names of vendor modules that the file itself puts something else in place of; "*" for all.

    Code that replaces ``torch.cuda.synchronize`` to watch it would not see the new call.
    """
    found: set[str] = set()
    if not _MAY_PATCH.search(text):
        return found
    for node in ast.walk(tree):
        if (
            isinstance(node, ast.Constant)
            and isinstance(node.value, str)
            and words.PATH.fullmatch(node.value)
        ):
            rest = node.value.split(".")[2:]
            found.add(rest[0] if rest else "*")
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, (ast.Store, ast.Del)):
            value = node.value
            if isinstance(value, ast.Attribute) and value.attr in words.DEVICES:
                found.add(node.attr)
        elif isinstance(node, ast.Call) and isinstance(node.func, (ast.Name, ast.Attribute)):
            name = node.func.attr if isinstance(node.func, ast.Attribute) else node.func.id
            if name in ("setattr", "delattr", "object") and len(node.args) > 1:
                owner, key = node.args[:2]
                if isinstance(owner, ast.Attribute) and owner.attr in words.DEVICES:
                    found.add(
                        key.value if isinstance(key, ast.Constant) and isinstance(key.value, str) else "*"
                    )
    return found
