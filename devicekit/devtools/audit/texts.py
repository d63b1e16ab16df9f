"""What takes the place of a text that names a device: ``"cuda"``, ``f"cuda:{rank}"``, ``"cuda:%d" % rank``."""

from __future__ import annotations

import ast
import re

from devicekit.devtools.audit import words
from devicekit.devtools.audit.chosen import ChosenDevice
from devicekit.devtools.audit.names import Names
from devicekit.devtools.audit.place import Place
from devicekit.devtools.audit.rendering import Part
from devicekit.devtools.audit.source import Source

_PREFIX = re.compile(r"([fF][rR]?|[rR][fF])(\"\"\"|'''|\"|')(\w+)(?=:)")


class Texts:
    """Code for texts of one file, each with the modules that the code names."""

    def __init__(self, names: Names, source: Source, chosen: ChosenDevice) -> None:
        self._names = names
        self._source = source
        self._chosen = chosen

    def of(self, text: str, place: Place) -> tuple[str, tuple[str, ...]]:
        """For a text as it is, or for what `filling` follows."""
        here, imports = self._chosen.here(place)
        _, colon, index = text.partition(":")
        index = index.replace("{", "{{").replace("}", "}}")
        type_ = f"{here}.torch_device.type"
        return (f'f"{{{type_}}}:{index}"' if colon else type_), imports

    def filling(self, node: ast.AST) -> list[Part]:
        """What follows the text of `filled`."""
        if isinstance(node, ast.BinOp):
            return [" + " if isinstance(node.op, ast.Add) else " % ", self._source.span(node.right)]
        parts: list[Part] = [".format("]
        for one in node.args if isinstance(node, ast.Call) else ():
            parts += [", " if len(parts) > 1 else "", self._source.span(one)]
        return [*parts, ")"]

    def formatted(self, node: ast.JoinedStr, place: Place) -> tuple[str, tuple[str, ...]] | None:
        """For a formatted text; ``None`` where it has to stay."""
        here, imports = self._chosen.here(place)
        if self._is_current(node, place):
            return f"str({here}.torch_device)", imports
        source = self._source.text_of(node)
        matched = _PREFIX.match(source)
        # What is filled in stays as it is too: a second run must not do what the first one left.
        filled_in = source[matched.end() :] if matched is not None else ""
        named = (one for one in ast.walk(node) if isinstance(one, (ast.Name, ast.Attribute)))
        vendors = any(words.module_rule(self._names.path(one, place.scope) or "") for one in named)
        told = vendors or words.telltale(filled_in) is not None or "devicekit." in filled_in
        if place.formatted or matched is None or told:
            return None
        return f"{matched[1]}{matched[2]}{{{here}.torch_device.type}}{source[matched.end() :]}", imports

    def _is_current(self, node: ast.JoinedStr, place: Place) -> bool:
        """Whether a text is the current device's, as in ``f"cuda:{torch.cuda.current_device()}"``."""
        last = node.values[-1]
        if len(node.values) != 2 or not isinstance(last, ast.FormattedValue):
            return False
        plain = last.format_spec is None and last.conversion == -1
        path = (
            (self._names.path(last.value.func, place.scope) or "") if isinstance(last.value, ast.Call) else ""
        )
        return plain and words.is_vendor(path) and path.endswith(".current_device")
