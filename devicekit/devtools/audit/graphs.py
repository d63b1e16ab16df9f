"""Finds the graphs that a function makes, captures and replays: both calls are rewritten, or neither."""

from __future__ import annotations

import ast
from collections.abc import Callable, Iterator
from dataclasses import dataclass

from devicekit.devtools.audit.names import Scope

_SHARED = frozenset({"replay", "reset"})  # what the vendor's graph and devicekit's both have


@dataclass(frozen=True, slots=True)
class Captured:
    """One graph of a function."""

    made: ast.Call  # torch.cuda.CUDAGraph()
    entered: tuple[ast.Call, ...]  # torch.cuda.graph(name)
    leaves: bool  # whether other code gets it, which may ask it for what only the vendor's has

    @property
    def calls(self) -> tuple[ast.Call, ...]:
        """Every call that names the vendor."""
        return (self.made, *self.entered)


def captured_in(node: ast.AST, scope: Scope, name_of: Callable[[ast.Call], str]) -> Iterator[Captured]:
    """The graphs of a function that mean the same when devicekit makes them.

    One with a pool, a stream or a mode of its own, or that is asked for what only the vendor's has, is left out.

    Args:
        node, scope: the function's.
        name_of: what a call calls of a vendor's module, as in "graph"; empty for anything else.
    """
    nodes = list(ast.walk(node))
    above = {child: parent for parent in nodes for child in ast.iter_child_nodes(parent)}
    for made in nodes:
        if isinstance(made, ast.Assign) and isinstance(made.value, ast.Call) and len(made.targets) == 1:
            target, call = made.targets[0], made.value
            new = name_of(call).endswith("Graph") and not call.args and not call.keywords
            if new and isinstance(target, ast.Name) and len(scope.bound.get(target.id, ())) == 1:
                found = _followed(call, target, nodes, above, name_of)
                if found is not None:
                    yield found


def _followed(
    made: ast.Call,
    target: ast.Name,
    nodes: list[ast.AST],
    above: dict[ast.AST, ast.AST],
    name_of: Callable[[ast.Call], str],
) -> Captured | None:
    entered: list[ast.Call] = []
    leaves = False
    for one in nodes:
        if isinstance(one, ast.arg) and one.arg == target.id:
            return None
        if not isinstance(one, ast.Name) or one.id != target.id or one is target:
            continue
        user = above[one]
        if isinstance(user, ast.Call) and name_of(user) == "graph":
            alone = len(user.args) == 1 and not user.keywords and isinstance(above[user], ast.withitem)
            if not alone:
                return None
            entered.append(user)
        elif isinstance(user, ast.Attribute):
            if user.attr not in _SHARED:
                return None
        else:
            leaves = True
    plain = all(call.lineno == call.end_lineno for call in (made, *entered))  # so that no comment is inside
    return Captured(made, tuple(entered), leaves) if entered and plain else None
