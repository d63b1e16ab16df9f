"""Finds out how large a pickle's result would be, without building it.

A pickle may refer to what it has built before, and so hold in 200 bytes what takes for ever to walk through. Here
its opcodes are followed with nodes in place of values, and the sizes of nodes are added up.
"""

from __future__ import annotations

import pickletools
from dataclasses import dataclass, field

from devicekit.scheduling.errors import InvalidOperation

_MOST_OPCODES = 4_000_000
_MOST_HOLDING = 1_000_000  # lists, tuples, dictionaries and calls
_MOST_VALUES = 8_000_000  # with everything counted as often as it is referred to
_DEEPEST = 100

_TAKEN = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3, "STACK_GLOBAL": 2, "REDUCE": 2, "NEWOBJ": 2}
"""Opcodes that make one value of those on top of the stack, and of how many."""
_HOLDING = {"TUPLE", "EMPTY_TUPLE", "EMPTY_LIST", "EMPTY_DICT", *_TAKEN}
_ADDED = {"APPEND": 1, "SETITEM": 2, "BUILD": 1}
"""Opcodes that put values on top of the stack into the one below them."""
_PUTS = ("BINPUT", "LONG_BINPUT", "MEMOIZE")


class PickleTooLarge(InvalidOperation):
    """A pickle builds more than any weights need."""


@dataclass(slots=True)
class _Node:
    parts: list[_Node] = field(default_factory=list)
    values: int = 0  # 0: not counted yet
    depth: int = 1


_LEAF = _Node(values=1)


def require_small(content: bytes, allowed: frozenset[str]) -> None:
    """Refuse a pickle that uses other opcodes than those allowed, or builds too much.

    Raises:
        PickleTooLarge: it builds more than is read.
        InvalidOperation: it uses another opcode.
        ValueError, IndexError, KeyError: it is none.
    """
    stack: list[_Node] = []
    marks: list[int] = []
    memo: dict[int, _Node] = {}
    nodes: list[_Node] = []
    for count, (opcode, argument, _) in enumerate(pickletools.genops(content)):
        name = opcode.name
        if name not in allowed:
            raise InvalidOperation(f"This pickle is refused: it uses {name}, which no tensor needs.")
        if count >= _MOST_OPCODES:
            raise PickleTooLarge(f"This pickle is refused: it has more than {_MOST_OPCODES} opcodes.")
        if name in ("PROTO", "FRAME", "STOP"):
            continue
        if name == "MARK":
            marks.append(len(stack))
        elif name in _PUTS:
            place = len(memo) if name == "MEMOIZE" else int(argument or 0)
            # Without this, one opcode makes the reader reserve gigabytes.
            if place > len(content):
                raise PickleTooLarge("This pickle is refused: it numbers more objects than it can hold.")
            memo[place] = stack[-1]
        elif name in ("BINGET", "LONG_BINGET"):
            stack.append(memo[int(argument or 0)])
        elif name in ("APPENDS", "SETITEMS"):
            parts = _cut(stack, marks.pop())
            stack[-1].parts.extend(parts)
        elif name in _ADDED:
            parts = _cut(stack, len(stack) - _ADDED[name])
            stack[-1].parts.extend(parts)
        else:
            begin = marks.pop() if name == "TUPLE" else len(stack) - _TAKEN.get(name, 0)
            if name not in _HOLDING:
                stack.append(_LEAF)
                continue
            if len(nodes) >= _MOST_HOLDING:
                raise PickleTooLarge(
                    f"This pickle is refused: it has more than {_MOST_HOLDING} lists and calls."
                )
            nodes.append(_Node(_cut(stack, begin)))
            stack.append(nodes[-1])
    for node in nodes:
        _count(node)


def _cut(stack: list[_Node], begin: int) -> list[_Node]:
    if not 0 <= begin <= len(stack):
        raise ValueError("it takes more than there is")
    parts = stack[begin:]
    del stack[begin:]
    return parts


def _count(root: _Node) -> None:
    """Add up what a node holds, after all that is in it."""
    waiting = [root]
    open_: set[int] = set()
    while waiting:
        node = waiting[-1]
        if node.values:
            waiting.pop()
            continue
        if id(node) in open_:
            open_.discard(id(node))
            waiting.pop()
            node.values = 1 + sum(part.values for part in node.parts)
            node.depth = 1 + max((part.depth for part in node.parts), default=0)
            if not all(part.values for part in node.parts):
                raise PickleTooLarge("This pickle is refused: something in it holds itself.")
            if node.values > _MOST_VALUES or node.depth > _DEEPEST:
                raise PickleTooLarge(
                    f"This pickle is refused: it builds over {_MOST_VALUES} values, or deeper than {_DEEPEST}."
                )
            continue
        open_.add(id(node))
        for part in node.parts:
            if not part.values:
                if id(part) in open_:
                    raise PickleTooLarge("This pickle is refused: something in it holds itself.")
                waiting.append(part)
