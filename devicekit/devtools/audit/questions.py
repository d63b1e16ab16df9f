"""Questions of one vendor where a tensor is, told from those which vendor's machine this is."""

from __future__ import annotations

import ast
from typing import NamedTuple

from devicekit.devtools.audit import words
from devicekit.devtools.audit.syntax import is_class_name


class Asked(NamedTuple):
    """What is asked of a tensor or a device."""

    whose: ast.expr
    vendors: str  # as they are written
    negated: bool = False  # whether it is not the vendor's
    by_word: bool = False  # whether a device is compared with a word, and not its type


def tensor_asked(node: ast.Attribute) -> Asked | None:
    """What ``tensor.is_cuda`` asks; ``None`` where something else is asked, as far as names tell.

    An object or a platform of the engine's own is asked by a word of its own.
    """
    whose = node.value
    name = whose.attr if isinstance(whose, ast.Attribute) else ast.unparse(whose)
    vendor = node.attr.partition("_")[2]
    about_tensor = vendor in words.DEVICES and isinstance(node.ctx, ast.Load)
    if not about_tensor or name in ("self", "cls") or "platform" in name or is_class_name(whose):
        return None
    return Asked(whose, vendor)


def device_asked(node: ast.Compare | ast.Call) -> Asked | None:
    """What a comparison of a device asks; ``None``: it is none.

    ``device.type == "cuda"``, ``device == "cuda"``, also with ``!=``, ``in`` and ``not in``, and
    ``device.startswith("cuda")``.
    """
    if isinstance(node, ast.Call):
        return _prefix_asked(node)
    operator, against = node.ops[0], node.comparators[0]
    if isinstance(operator, (ast.In, ast.NotIn)) and isinstance(against, (ast.Tuple, ast.List, ast.Set)):
        named = against.elts
    elif isinstance(operator, (ast.Eq, ast.NotEq)):
        named = [against]
    else:
        return None
    by_type = isinstance(node.left, ast.Attribute) and node.left.attr == "type"
    whose = node.left.value if isinstance(node.left, ast.Attribute) and by_type else node.left
    types = [one.value for one in named if isinstance(one, ast.Constant)]
    known = len(node.ops) == 1 and len(types) == len(named) and words.DEVICES.issuperset(types)
    if not known or not _is_device(whose):
        return None
    negated = isinstance(operator, (ast.NotEq, ast.NotIn))
    return Asked(whose, ast.unparse(against), negated, by_word=not by_type)


def _prefix_asked(node: ast.Call) -> Asked | None:
    called = node.func
    if not isinstance(called, ast.Attribute) or called.attr != "startswith" or len(node.args) != 1:
        return None
    word, whose = node.args[0], called.value
    if isinstance(whose, ast.Call) and ast.unparse(whose.func) == "str" and len(whose.args) == 1:
        whose = whose.args[0]
    if not isinstance(word, ast.Constant) or word.value not in words.DEVICES or not _is_device(whose):
        return None
    return Asked(whose, ast.unparse(word), by_word=True)


def _is_device(node: ast.expr) -> bool:
    """Whether a name is one that devices are given to, or one is made here."""
    if isinstance(node, ast.Call):
        return ast.unparse(node.func) == "torch.device" and len(node.args) == 1 and not node.keywords
    name = node.attr if isinstance(node, ast.Attribute) else ast.unparse(node)
    return words.may_hold_device(name)
