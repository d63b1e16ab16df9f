"""Makes edits in a file's source with LibCST: what is not edited stays as it is, to the last blank."""

from __future__ import annotations

import ast
import warnings
from collections.abc import Iterable, Mapping

from devicekit.contract.errors import ConfigurationError
from devicekit.devtools.audit.findings import Edit, Span
from devicekit.devtools.audit.words import module_rule

try:
    import libcst
    from libcst.codemod import CodemodContext
    from libcst.codemod.visitors import AddImportsVisitor, RemoveImportsVisitor
    from libcst.helpers import get_absolute_module_for_import
    from libcst.metadata import MetadataWrapper, PositionProvider
except ImportError as error:  # pragma: no cover
    raise ConfigurationError(
        "Rewriting needs LibCST, which is not installed. Try: pip install 'devicekit[audit]'"
    ) from error


def rewrite(text: str, edits: Iterable[Edit], *, tidy: bool = True) -> tuple[str, list[Edit]]:
    """The text with edits made, and which were.

    An edit is left out if a comment would be lost or the new code would not parse.

    Args:
        text: a file's.
        edits: what to replace.
        tidy: remove imports of torch and of vendor modules that nothing uses any more.
    """
    wanted = {edit.span: edit for edit in edits}
    if not wanted:
        return text, []
    try:
        module = libcst.parse_module(text)
    except (libcst.ParserSyntaxError, RecursionError):
        return text, []
    wrapper = MetadataWrapper(module, unsafe_skip_copy=True)
    editing = _Editing(wanted, wrapper.module)
    changed = wrapper.visit(editing)
    if not editing.made:
        return text, []
    changed = _importing(changed, {name for edit in editing.made for name in edit.imports})
    if tidy:
        changed = _without_unused(changed, _names_used(text) - _names_used(changed.code))
    return (changed.code, editing.made) if _parses(changed.code) else (text, [])


def _names_used(text: str) -> set[str]:
    return {node.id for node in ast.walk(ast.parse(text)) if isinstance(node, ast.Name)}


def _importing(module: libcst.Module, names: set[str]) -> libcst.Module:
    """With imports of modules, and of module:name, at its top.

    Only what stands above the last import there is looked at: the visitor takes longer than all the rest, and
    would take an import inside of a function for one that everybody sees.
    """
    context = CodemodContext()
    for name in sorted(names):
        source, _, member = name.partition(":")
        AddImportsVisitor.add_needed_import(context, source, member or None)
    lines = [number for number, line in enumerate(module.body) if _imports(line)]
    cut = max(lines[-1] + 1 if lines else 0, 1)
    head = AddImportsVisitor(context).transform_module(module.with_changes(body=module.body[:cut]))
    return module.with_changes(body=[*head.body, *module.body[cut:]], header=head.header)


def _imports(line: libcst.BaseStatement | libcst.BaseSmallStatement) -> bool:
    kinds = (libcst.Import, libcst.ImportFrom)
    return isinstance(line, libcst.SimpleStatementLine) and any(isinstance(one, kinds) for one in line.body)


def _without_unused(module: libcst.Module, gone: set[str]) -> libcst.Module:
    """Without the imports at its top for code that is gone.

    Args:
        gone: names that the file used and does not any more: what it never used may be there for others.
    """
    context = CodemodContext()
    for line in module.body:
        for statement in line.body if gone and isinstance(line, libcst.SimpleStatementLine) else ():
            if isinstance(statement, libcst.ImportFrom):
                source = get_absolute_module_for_import(None, statement) if not statement.relative else None
                if source is None or isinstance(statement.names, libcst.ImportStar):
                    continue
                for alias in statement.names:
                    name, local = alias.evaluated_name, alias.evaluated_alias or alias.evaluated_name
                    if local in gone and module_rule(f"{source}.{name}") == "DK001":
                        RemoveImportsVisitor.remove_unused_import(
                            context, source, name, alias.evaluated_alias
                        )
            elif isinstance(statement, libcst.Import):
                for alias in statement.names:
                    name, local = alias.evaluated_name, alias.evaluated_alias or alias.evaluated_name
                    # "import torch.cuda" gives torch its name.
                    if local in gone and (name == "torch" or module_rule(name) == "DK001"):
                        RemoveImportsVisitor.remove_unused_import(context, name, None, alias.evaluated_alias)
    return RemoveImportsVisitor(context).transform_module(module) if context.scratch else module


class _Editing(libcst.CSTTransformer):
    """Replaces expressions by their place, innermost first."""

    METADATA_DEPENDENCIES = (PositionProvider,)

    def __init__(self, wanted: Mapping[Span, Edit], module: libcst.Module) -> None:
        super().__init__()
        self.made: list[Edit] = []
        self._wanted = wanted
        self._pieces = {part for edit in wanted.values() for part in edit.parts if not isinstance(part, str)}
        self._code: dict[Span, str] = {}  # of the pieces, as they are by now
        self._module = module

    def on_leave(  # type: ignore[override]  # the general form of every leave_* method
        self, original_node: libcst.CSTNode, updated_node: libcst.CSTNode
    ) -> libcst.CSTNode | libcst.RemovalSentinel | libcst.FlattenSentinel[libcst.CSTNode]:
        if not isinstance(original_node, libcst.BaseExpression):
            return super().on_leave(original_node, updated_node)
        span = self._span(original_node)
        node = updated_node
        edit = self._wanted.get(span)
        if edit is not None and isinstance(updated_node, libcst.BaseExpression):
            node = self._replaced(edit, original_node, updated_node)
        if span in self._pieces:
            self._code[span] = self._module.code_for_node(node)
        return node

    def _replaced(
        self, edit: Edit, original: libcst.BaseExpression, updated: libcst.BaseExpression
    ) -> libcst.BaseExpression:
        pieces = [part if isinstance(part, str) else self._code.get(part) for part in edit.parts]
        joined = [piece for piece in pieces if piece is not None]
        if len(joined) != len(pieces):
            return updated
        method = joined[0].startswith(".")  # of whatever stands before it
        code = "".join(["x", *joined] if method else joined)
        kept = sum(piece.count("#") for piece in joined)
        receiver = original.func if isinstance(original, libcst.Call) and method else None
        before = self._module.code_for_node(original).count("#")
        before -= self._module.code_for_node(receiver).count("#") if receiver is not None else 0
        if before != kept or not _parses(f"({code})"):
            return updated
        new = libcst.parse_expression(code)
        self.made.append(edit)
        if method:
            assert isinstance(new, libcst.Call)
            assert isinstance(new.func, libcst.Attribute)
            assert isinstance(updated, libcst.Call)
            return updated.with_changes(func=updated.func.with_changes(attr=new.func.attr), args=new.args)
        return new.with_changes(lpar=updated.lpar, rpar=updated.rpar)

    def _span(self, node: libcst.CSTNode) -> Span:
        place = self.get_metadata(PositionProvider, node)
        return (place.start.line, place.start.column), (place.end.line, place.end.column)


def _parses(code: str) -> bool:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            ast.parse(code)
    except (SyntaxError, ValueError, RecursionError, MemoryError):
        return False
    return True
