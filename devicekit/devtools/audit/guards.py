"""When "is there an accelerator" may be asked in place of "is there this vendor's".

The question changes its answer on other vendors' devices. That is right only where everything that it guards was
rewritten too; a guard over code that still names a vendor stays as it is. So does one of several, each of which
asks for another vendor, unless all do the same: the first would be true for all.
"""

from __future__ import annotations

import ast
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeGuard

from devicekit.devtools.audit import words
from devicekit.devtools.audit.findings import Edit
from devicekit.devtools.audit.marks import Marks
from devicekit.devtools.audit.names import Scope


@dataclass(frozen=True, slots=True)
class _Guard:
    """A part of a test, what is asked beside it, what runs where it holds, and what runs where it does not."""

    question: ast.expr
    beside: Sequence[ast.AST]
    body: Sequence[ast.AST]
    otherwise: Sequence[ast.AST] = ()

    @property
    def says(self) -> str:
        """What is guarded, whichever vendor it names."""
        return words.without_vendors("\n".join(map(ast.unparse, (*self.beside, *self.body))))


class _Question(NamedTuple):
    """What is asked, in which scope, and for whom."""

    group: tuple[int, str]
    vendors: frozenset[str]
    negated: bool  # whether it is asked for another place than the vendor's


_LEAVE = (ast.Return, ast.Raise, ast.Continue, ast.Break)


class Guards:
    """The questions of one file, and what each guards."""

    def __init__(self, tree: ast.Module, marks: Marks, vendors: set[str]) -> None:
        self._tree = tree
        self._marks = marks
        self._named = vendors  # by the whole file
        self._questions: dict[ast.AST, _Question] = {}
        self._stands: dict[ast.expr, ast.expr] = {}  # the question that a larger expression is
        self._mentions: dict[ast.AST, set[str]] = {}
        self._rest: dict[ast.stmt, Sequence[ast.stmt]] = {}

    def follow(self, node: ast.stmt, rest: Sequence[ast.stmt]) -> None:
        """Note what comes after a statement that may decide whether it runs."""
        if isinstance(node, (ast.If, ast.Assert)):
            self._rest[node] = rest

    def ask(self, node: ast.AST, scope: Scope, about: str, vendor: str, *, negated: bool = False) -> None:
        """Note a question, of what in which scope it is asked, and for whom."""
        # A scope holds dictionaries and is the only one of its kind.
        vendors = frozenset(words.vendors_in(vendor))
        self._questions[node] = _Question((id(scope), about), vendors, negated)

    def stand(self, node: ast.expr, question: ast.expr) -> None:
        """Note that an expression asks nothing but a question that is part of it."""
        self._stands[node] = question

    def join(self, node: ast.BoolOp) -> tuple[list[ast.expr], bool]:
        """The questions of ``a or b`` or ``not a and not b`` about one thing, and whether it is ``not``.

        They are one question from then on, for every vendor of theirs. None where anything else is asked.
        """
        asked = [(one.operand, True) if _is_not(one) else (one, False) for one in node.values]
        questions = [self._stands.get(one, one) for one, _ in asked]
        known = [self._questions[one] for one in questions if one in self._questions]
        if len(known) < len(questions) or len({one.group for one in known}) > 1:
            return [], False
        vendors = frozenset().union(*(one.vendors for one in known))
        turned = [outer != one.negated for one, (_, outer) in zip(known, asked, strict=True)]
        if turned != [isinstance(node.op, ast.And)] * len(turned) or not vendors <= words.CHOSEN:
            return [], False
        first, *others = questions
        for one in others:
            del self._questions[one]
        self._questions[first] = known[0]._replace(vendors=vendors)
        self._stands[node] = first
        return questions, turned[0]

    def mention(self, node: ast.AST, vendors: set[str]) -> None:
        """Note a question for vendors that is rewritten or not."""
        self._mentions[node] = vendors

    def settle(self, edits: Mapping[ast.AST, Edit], found: set[ast.AST]) -> dict[ast.AST, Edit]:
        """The edits, in which a question is safe only where all that it guards is.

        Args:
            edits: by the expression that they replace.
            found: every expression that names a vendor.
        """
        settled = dict(edits)
        if not settled:
            return settled
        guards: dict[ast.AST, _Guard] = {
            self._stands.get(guard.question, guard.question): guard for guard in self._guards()
        }
        branches = self._branches(settled, found)
        while doubtful := [
            one
            for one in settled
            if settled[one].safe
            and not (
                (one not in self._questions or self._is_ready(guards.get(one), settled, found))
                and all(test in settled and settled[test].safe for test in branches.get(one, ()))
            )
        ]:
            settled.update((one, replace(settled[one], safe=False)) for one in doubtful)
        for question in self._contested(settled, guards):
            del settled[question]
        return settled

    def _branches(self, settled: Mapping[ast.AST, Edit], found: set[ast.AST]) -> dict[ast.AST, set[ast.AST]]:
        """What names a vendor in the tests of branches around each edit that is of that vendor if the test stays.

        These are questions, and words for devices below a comparison: whoever asks for "cuda" is given no other.
        """
        around: dict[ast.AST, set[ast.AST]] = defaultdict(set)
        for node in self._marks.walk(self._tree):
            tests = found.intersection(ast.walk(node.test)) if isinstance(node, ast.If) else set()
            for one in _all(node.body) if isinstance(node, ast.If) and tests else ():
                if one in self._questions:
                    around[one] |= tests
                elif one in settled and isinstance(one, (ast.Constant, ast.JoinedStr)):
                    around[one] |= tests & self._mentions.keys()
        return around

    @staticmethod
    def _is_ready(guard: _Guard | None, settled: Mapping[ast.AST, Edit], found: set[ast.AST]) -> bool:
        """Whether a question guards something that is rewritten, and nothing that is not, as far as is known."""
        if guard is None or found.isdisjoint(_all(guard.body)):
            return False
        guarded = [settled.get(one) for one in _all((*guard.beside, *guard.body)) if one in found]
        return all(edit is not None and edit.safe for edit in guarded)

    def _contested(self, settled: Mapping[ast.AST, Edit], guards: Mapping[ast.AST, _Guard]) -> list[ast.AST]:
        """The questions that would take from another vendor what is meant for it alone."""
        groups: dict[object, list[ast.AST]] = defaultdict(list)
        for question, asked in self._questions.items():
            groups[asked.group].append(question)
        found = []
        for questions in groups.values():
            alike = {guards[one].says if one in guards else "" for one in questions}
            vendors = {self._questions[one].vendors for one in questions}
            whole = len(alike) == 1 and all(one in settled and settled[one].safe for one in questions)
            # Code that knows CUDA asks for another vendor to do there what it does nowhere else.
            apart = "cuda" in self._named and not any("cuda" in one for one in vendors)
            if (len(vendors) > 1 and not whole) or apart:
                found += [one for one in questions if one in settled]
            else:
                found += [one for one in questions if one in settled and self._takes(guards.get(one), guards)]
        return found

    def _takes(self, guard: _Guard | None, guards: Mapping[ast.AST, _Guard]) -> bool:
        """Whether something else is done for another vendor where the answer was no."""
        if guard is None:
            return False
        own = words.vendors_in(ast.unparse(guard.question))
        inside = set(_all(guard.otherwise))
        others = [one for one, vendors in self._mentions.items() if one in inside and vendors - own]
        return any(self._says_at(one, guards) != guard.says for one in others)

    def _says_at(self, mention: ast.AST, guards: Mapping[ast.AST, _Guard]) -> str | None:
        around = (guard for guard in guards.values() if mention in set(ast.walk(guard.question)))
        return next((guard.says for guard in around), None)

    def _guards(self) -> Iterator[_Guard]:
        """Each question that stands where it guards something, and that."""
        for node in self._marks.walk(self._tree):
            if isinstance(node, ast.If):
                yield from self._of_if(node)
            elif isinstance(node, ast.IfExp):
                for question, beside, positive in self._asked(node.test):
                    yes, no = (node.body, node.orelse) if positive else (node.orelse, node.body)
                    yield _Guard(question, beside, [yes], [*beside, no])
            elif isinstance(node, ast.Assert):
                for question, beside, positive in self._asked(node.test):
                    if positive:
                        yield _Guard(question, beside, self._rest.get(node, ()))

    def _of_if(self, node: ast.If) -> Iterator[_Guard]:
        leaves = isinstance(node.body[-1], _LEAVE) or _skips(node.body[-1])
        after = self._rest.get(node, ()) if leaves else ()
        for question, beside, positive in self._asked(node.test):
            if positive:
                yield _Guard(question, beside, node.body, [*beside, *node.orelse, *after])
            elif node.orelse:
                yield _Guard(question, beside, node.orelse, [*beside, *node.body])
            elif leaves:
                yield _Guard(question, beside, after, [*beside, *node.body])

    def _asked(self, test: ast.expr) -> Iterator[tuple[ast.expr, list[ast.AST], bool]]:
        """Each part of a test that decides, what is asked beside it, and whether it must hold."""
        if isinstance(test, ast.BoolOp) and test not in self._stands:
            must = isinstance(test.op, ast.And)
            for one in test.values:
                part, holds = self._plain(one)
                if holds == must:
                    yield part, [other for other in test.values if other is not one], holds
        else:
            part, holds = self._plain(test)
            yield part, [], holds

    def _plain(self, node: ast.expr) -> tuple[ast.expr, bool]:
        """An expression without the ``not`` before it, and whether it must hold."""
        inner, holds = (node.operand, False) if _is_not(node) else (node, True)
        if inner in self._stands and isinstance(inner, ast.BoolOp):
            holds = holds != _is_not(inner.values[0])
        return inner, holds


def _all(nodes: Iterable[ast.AST]) -> Iterator[ast.AST]:
    return (one for node in nodes for one in ast.walk(node))


def _is_not(node: ast.expr) -> TypeGuard[ast.UnaryOp]:
    return isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not)


def _skips(node: ast.stmt) -> bool:
    """Whether a statement ends a test or a program: ``pytest.skip(...)``, ``sys.exit()``."""
    if not isinstance(node, ast.Expr) or not isinstance(node.value, ast.Call):
        return False
    called = node.value.func
    name = (
        called.attr
        if isinstance(called, ast.Attribute)
        else called.id
        if isinstance(called, ast.Name)
        else ""
    )
    return name.lower() in ("skip", "skiptest", "exit", "fail")
