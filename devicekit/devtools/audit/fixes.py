"""Decides what can be written in place of a finding, and whether that is certain to mean the same.

An edit is safe if the code does the same as before on every machine where the old code ran: on that vendor's
device, and without any. What is evaluated while a module is imported would open a device then, so it is offered
as unsafe. In defaults, decorators and functions that a compiler reads nothing is touched.
"""

from __future__ import annotations

import ast
from collections.abc import Iterable, Sequence
from dataclasses import replace

from devicekit.devtools.audit import words
from devicekit.devtools.audit.calls import Calls
from devicekit.devtools.audit.edits import Edits
from devicekit.devtools.audit.findings import Edit, Span
from devicekit.devtools.audit.guards import Guards
from devicekit.devtools.audit.marks import Marks
from devicekit.devtools.audit.moves import Moves
from devicekit.devtools.audit.names import Names, Scope
from devicekit.devtools.audit.patched import patched
from devicekit.devtools.audit.place import Place
from devicekit.devtools.audit.questions import Asked, device_asked, tensor_asked
from devicekit.devtools.audit.rendering import NEED_PARENTHESES
from devicekit.devtools.audit.table import ANY_VENDOR, ANY_WORD


class Editor:
    """The edits of one file: of names, of moves, and here of questions, which hang on what they guard."""

    def __init__(
        self, names: Names, text: str, tree: ast.Module, marks: Marks, device_name: str | None
    ) -> None:
        bound = names.module.bound.get("devicekit")  # then the file may have named others before
        replaced = patched(tree, text, marks)
        self._edits = Edits(names, text, tree, device_name)
        self._guards = Guards(tree, marks, words.vendors_in(text) | ({"cuda"} if bound else set()))
        self.calls = Calls(self._edits, self._guards, replaced, text)
        self.moves = Moves(self._edits)
        self._comprehensions: list[ast.AST] = []
        self._possible = all(one == "devicekit" for one in bound or ()) and "*" not in replaced

    def follow(self, node: ast.stmt, rest: Sequence[ast.stmt]) -> None:
        """Note what comes after a statement in its block."""
        self._guards.follow(node, rest)

    def settle(self, found: Iterable[ast.AST]) -> dict[ast.AST, Edit]:
        """Every edit of a finding, once all findings are known."""
        if not self._possible:
            return {}
        places = list(found)
        kept = {node: self._edits.made[node] for node in places if node in self._edits.made}
        for comprehension in self._comprehensions:
            inside = set(ast.walk(comprehension)).intersection(places)
            if not all(one in kept and kept[one].safe for one in inside):  # half of it is no better than none
                kept |= {one: replace(kept[one], safe=False) for one in inside if one in kept}
        return self._guards.settle(self.calls.whole_graphs(kept), set(places))

    def mention(self, node: ast.AST) -> None:
        """Note a question for some vendor, whether or not it can be rewritten."""
        self._guards.mention(node, words.vendors_in(ast.unparse(node)))

    def swallowed(self, node: ast.AST, edits: Iterable[Edit]) -> Edit | None:
        """The edit that takes ``node`` away with what is around it."""
        span = self._edits.span(node)
        around = (one for one in edits if _within(span, one.span))
        kept = ((one, [part for part in one.parts if not isinstance(part, str)]) for one in around)
        return next((one for one, parts in kept if not any(_within(span, part) for part in parts)), None)

    def comprehend(self, node: ast.AST) -> None:
        """Note a comprehension, whose parts speak of the same device."""
        self._comprehensions.append(node)

    def device_parameter(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> str:
        """A parameter that is a Device."""
        return self._edits.chosen.parameter(node, scope)

    def switches(self, node: ast.expr, scope: Scope) -> bool:
        """Whether entering ``node`` makes another device current."""
        if not isinstance(node, ast.Call):
            return False
        path = self._edits.path(node.func, scope)
        return path.startswith("torch.") and path.rpartition(".")[2] in (
            "device",
            "device_of",
            "device_index",
        )

    def presence(self, node: ast.BoolOp, place: Place) -> None:
        """``hasattr(torch, "xpu") and torch.xpu.is_available()``, which is one question."""
        asked, edit = node.values[0], self._edits.made.get(node.values[1])
        available = node.values[1]
        if edit is None or not isinstance(asked, ast.Call) or not isinstance(available, ast.Call):
            return
        path = self._edits.path(available.func, place.scope)
        module, _, name = path.rpartition(".")
        has = self._edits.names.path(asked.func, place.scope) == "hasattr" and len(asked.args) == 2
        if isinstance(node.op, ast.And) and has and name == "is_available":
            owner, key = asked.args
            if (
                isinstance(key, ast.Constant)
                and isinstance(key.value, str)
                and f"{self._edits.names.path(owner, place.scope)}.{key.value}" == module
            ):
                span = (self._edits.span(asked)[0], self._edits.span(available)[1])
                self._edits.made[available] = replace(edit, span=span)
                if len(node.values) == 2:
                    self._guards.stand(node, available)

    def one_question(self, node: ast.BoolOp) -> None:
        """``torch.cuda.is_available() or torch.xpu.is_available()`` and the like: one question, for any vendor."""
        questions, negated = self._guards.join(node)
        edits = [self._edits.made.pop(one) for one in questions if one in self._edits.made]
        if questions and len(edits) == len(questions):
            first = edits[0].parts[0]
            assert isinstance(first, str)
            parts = (f"{'not ' if negated else ''}{first.removeprefix('not ')}", *edits[0].parts[1:])
            safe = all(one.safe for one in edits)
            self._edits.made[questions[0]] = replace(
                edits[0], span=self._edits.span(node), parts=parts, safe=safe
            )

    def tensor_question(self, node: ast.Attribute, place: Place) -> str:
        """``tensor.is_cuda``; what to ask instead, if it is one."""
        asked = tensor_asked(node)
        if asked is None or self._edits.is_imported(asked.whose, place):
            return ""
        return self._ask(node, asked, place)

    def device_question(self, node: ast.Compare | ast.Call, place: Place) -> tuple[str, str]:
        """``device == "cuda"``, or its type; what to ask instead and what changes, if it is one."""
        asked = device_asked(node)
        if asked is None:
            return "", ""
        return self._ask(node, asked, place), ANY_WORD if asked.by_word else ANY_VENDOR

    def _ask(self, node: ast.expr, asked: Asked, place: Place) -> str:
        whose = asked.whose
        self._guards.ask(node, place.scope, ast.unparse(whose), asked.vendors, negated=asked.negated)
        if not (place.frozen or place.compiled or place.annotation or isinstance(whose, NEED_PARENTHESES)):
            first = "not " if asked.negated else ""
            parts = (f"{first}devicekit.on_accelerator(", self._edits.span(whose), ")")
            # What is on no vendor's device may be on one that devicekit has no backend for, as on a Mac.
            self._edits.keep(Edit(self._edits.span(node), parts, False, ("devicekit",)), node, place)
        return "devicekit.on_accelerator(tensor or device)"


def _within(inner: Span, outer: Span) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]
