"""What a piece of syntax is, whatever its names stand for."""

from __future__ import annotations

import ast
from collections.abc import Sequence

from devicekit.devtools.audit import words


def assigned_name(targets: Sequence[ast.expr]) -> str:
    """The last name of what a value is assigned to, where there is one target."""
    if len(targets) != 1:
        return ""
    target = targets[0]
    return (
        target.id
        if isinstance(target, ast.Name)
        else target.attr
        if isinstance(target, ast.Attribute)
        else ""
    )


def moves_tensor(node: ast.Call) -> bool:
    """Whether a call of ``.cuda()`` moves a tensor or module: it is told where to, or nothing."""
    known = {"device", "non_blocking", "memory_format", "async"}
    return len(node.args) <= 2 and all(one.arg in known for one in node.keywords)


def imports_apart(node: ast.stmt) -> bool:
    """Whether a statement imports a package that only one vendor's hardware needs, beside others'."""
    if isinstance(node, ast.Import):
        return any(one.name.partition(".")[0] in words.PACKAGES_APART for one in node.names)
    return isinstance(node, ast.ImportFrom) and (node.module or "").partition(".")[0] in words.PACKAGES_APART


_MISSING = frozenset(
    {"Exception", "BaseException", "RuntimeError", "AssertionError", "AttributeError", "NotImplementedError"}
)
"""What torch raises where a device or its module is missing, and what catches that."""


def catches_error(node: ast.ExceptHandler) -> bool:
    """Whether a handler goes on after an error that torch raises where a device is missing."""
    kinds = node.type.elts if isinstance(node.type, ast.Tuple) else [node.type]
    caught = any(one is None or called_name(one).rpartition(".")[2] in _MISSING for one in kinds)
    return caught and not (isinstance(node.body[-1], ast.Raise) and node.body[-1].exc is None)


def expects_error(node: ast.expr) -> bool:
    """Whether code below ``with`` may raise, as in ``pytest.raises(RuntimeError)``."""
    name = called_name(node.func).rpartition(".")[2] if isinstance(node, ast.Call) else ""
    return name in ("raises", "suppress") or name.startswith("assertRaises")


def is_main_block(node: ast.expr) -> bool:
    """Whether a test is that of ``if __name__ == "__main__"``."""
    return (
        isinstance(node, ast.Compare)
        and isinstance(node.left, ast.Name)
        and node.left.id == "__name__"
        and isinstance(node.ops[0], ast.Eq)
    )


def is_none(node: ast.expr) -> bool:
    """Whether an expression is ``None``."""
    return isinstance(node, ast.Constant) and node.value is None


def is_own(node: ast.expr) -> bool:
    """Whether a method of ``node`` is its own object's."""
    return ast.unparse(node) in ("self", "cls", "super()")


def is_by_position(node: ast.AST) -> bool:
    """Whether what fills a text is given by position."""
    return isinstance(node, ast.BinOp) or (isinstance(node, ast.Call) and not node.keywords)


def last_name(node: ast.expr) -> str:
    """The last name in an expression, in small letters: of ``x.untyped_storage()`` it is that."""
    return ast.unparse(node.func if isinstance(node, ast.Call) else node).rpartition(".")[2].lower()


def arguments_of(node: ast.expr) -> list[ast.expr]:
    """What a call is given, by position and by name."""
    assert isinstance(node, ast.Call)
    return [*node.args, *(one.value for one in node.keywords)]


def names_device(node: ast.expr) -> bool:
    """Whether an expression spells a vendor's device, or several of which one is."""
    if isinstance(node, ast.Constant):
        return isinstance(node.value, str) and words.is_device(node.value)
    if isinstance(node, ast.JoinedStr):
        return bool(node.values) and isinstance(node.values[0], ast.Constant) and names_device(node.values[0])
    if isinstance(node, (ast.Tuple, ast.List, ast.Set)):
        return any(map(names_device, node.elts))
    if (text := filled(node)) is not None:
        return names_device(text)
    if isinstance(node, ast.Call) and called_name(node.func) in ("torch.device", "device"):
        return any(map(names_device, node.args))
    return False


def filled(node: ast.AST) -> ast.Constant | None:
    """The text in ``"cuda:{}".format(i)``, ``"cuda:%d" % i`` or ``"cuda:" + i``; ``None``: it is no such thing."""
    if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Mod, ast.Add)):
        text = node.left
    elif isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == "format":
        text = node.func.value
    else:
        return None
    return text if isinstance(text, ast.Constant) and isinstance(text.value, str) else None


def uses_environment(node: ast.AST) -> ast.expr | None:
    """The variable that code reads or writes in its environment, where that is plain to see."""
    if isinstance(node, ast.Subscript):
        return node.slice if called_name(node.value).endswith("environ") else None
    if isinstance(node, ast.Compare):
        asked = isinstance(node.ops[0], (ast.In, ast.NotIn)) and called_name(node.comparators[0]).endswith(
            "environ"
        )
        return node.left if asked else None
    if not isinstance(node, ast.Call) or not node.args:
        return None
    owner, _, name = called_name(node.func).rpartition(".")
    through = owner.endswith("environ") and name in ("get", "setdefault", "pop")
    return node.args[0] if through or name in ("getenv", "putenv", "unsetenv", "setenv", "delenv") else None


def called_name(node: ast.expr) -> str:
    """A name or dotted path, as it is written; empty for anything else."""
    return ast.unparse(node) if isinstance(node, (ast.Name, ast.Attribute)) else ""


def short(node: ast.AST) -> str:
    """Code on one line, cut to 60 characters."""
    text = " ".join(ast.unparse(node).split())
    return text if len(text) <= 60 else f"{text[:57]}..."


def is_class_name(node: ast.expr) -> bool:
    """Whether the last name of an expression is written as that of a class."""
    name = node.attr if isinstance(node, ast.Attribute) else node.id if isinstance(node, ast.Name) else ""
    return name[:1].isupper() and not name.isupper()
