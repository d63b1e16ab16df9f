"""Questions of one vendor where a tensor is, told from those which vendor's machine this is."""

from __future__ import annotations

import ast
from typing import NamedTuple

from devicekit.devtools.audit import words
from devicekit.devtools.audit.syntax import is_class_name


class AskedDevice(NamedTuple):
    """What a comparison asks of a device."""

    device: ast.expr
    negated: bool  # whether it is not the vendor's


def tensor_asked(node: ast.Attribute) -> ast.expr | None:
    """The tensor of ``tensor.is_cuda``; ``None`` where something else is asked, as far as names tell.

    An object or a platform of the engine's own is asked by a word of its own.
    """
    whose = node.value
    name = whose.attr if isinstance(whose, ast.Attribute) else ast.unparse(whose)
    about_tensor = node.attr.partition("_")[2] in words.DEVICES and isinstance(node.ctx, ast.Load)
    if not about_tensor or name in ("self", "cls") or "platform" in name or is_class_name(whose):
        return None
    return whose


def device_asked(node: ast.Compare) -> AskedDevice | None:
    """The device of ``device.type == "cuda"``, or of ``!=``, ``in`` and ``not in``; ``None``: it is none."""
    asked, operator, against = node.left, node.ops[0], node.comparators[0]
    if len(node.ops) != 1 or not (isinstance(asked, ast.Attribute) and asked.attr == "type"):
        return None
    if isinstance(operator, (ast.In, ast.NotIn)) and isinstance(against, (ast.Tuple, ast.List, ast.Set)):
        named = against.elts
    elif isinstance(operator, (ast.Eq, ast.NotEq)):
        named = [against]
    else:
        return None
    types = [one.value for one in named if isinstance(one, ast.Constant)]
    whose = asked.value
    name = whose.attr if isinstance(whose, ast.Attribute) else ast.unparse(whose)
    if len(types) != len(named) or not words.DEVICES.issuperset(types) or not words.may_hold_device(name):
        return None
    return AskedDevice(whose, isinstance(operator, (ast.NotEq, ast.NotIn)))
