"""Decides what can be written where code says on which device something goes: moves, and words for devices."""

from __future__ import annotations

import ast

from devicekit.devtools.audit import words
from devicekit.devtools.audit.edits import Edits
from devicekit.devtools.audit.findings import Edit
from devicekit.devtools.audit.place import Place
from devicekit.devtools.audit.rendering import Part, keeps_order
from devicekit.devtools.audit.syntax import (
    filled,
    is_by_position,
    is_class_name,
    is_own,
    last_name,
    names_device,
)


class Moves:
    """The moves and the words for devices in one file."""

    def __init__(self, edits: Edits) -> None:
        self._edits = edits
        self._texts = edits.texts

    def move(self, node: ast.Call, place: Place) -> None:
        """``tensor.cuda()``."""
        assert isinstance(node.func, ast.Attribute)
        receiver = node.func.value
        imported = self._edits.names.path(receiver, place.scope)
        named = imported is not None and (
            imported in words.PACKAGES or self._edits.is_imported(receiver, place)
        )
        # torch's storages take a device by name only, and give another type.
        if (
            place.frozen
            or place.compiled
            or named
            or is_class_name(receiver)
            or "storage" in last_name(receiver)
        ):
            return
        given = dict(zip(("device", "non_blocking"), node.args, strict=False))
        given |= {one.arg: one.value for one in node.keywords if one.arg is not None}
        asked = tuple(given.values())
        handle = self._edits.handle(given.pop("device", None), place)
        if handle is None or any(isinstance(one, ast.Starred) for one in node.args):
            return
        parts, imports = handle
        parts = (".to(", *parts, ".torch_device")
        for name, value in given.items():
            parts = (*parts, f", {name}=", self._edits.span(value))
        # An object of the engine's own moves itself as it likes, and may do one by the other.
        own = is_own(receiver)
        methods = self._edits.names.methods()
        if own and not methods.isdisjoint({node.func.attr, "to"}):
            return
        safe = place.runs and not own and node.func.attr not in methods and keeps_order(asked, parts)
        self._edits.keep(Edit(self._edits.span(node), (*parts, ")"), safe, imports), node, place)

    def literals(self, node: ast.Call, place: Place) -> None:
        """``tensor.to("cuda")``."""
        if place.frozen or place.compiled or any(one.arg is None for one in node.keywords):
            return
        parts: list[Part] = [".to("]
        imports: tuple[str, ...] = ()
        for number, one in enumerate([*node.args, *node.keywords]):
            value = one.value if isinstance(one, ast.keyword) else one
            parts.append(", " if number else "")
            if isinstance(one, ast.keyword):
                parts.append(f"{one.arg}=")
            if (
                isinstance(value, ast.Constant)
                and isinstance(value.value, str)
                and words.is_device(value.value)
            ):
                text, named = self._texts.of(value.value, place)
                parts.append(text)
                imports += named
            elif (
                isinstance(value, ast.JoinedStr) and (made := self._texts.formatted(value, place)) is not None
            ):
                parts.append(made[0])
                imports += made[1]
            elif (text_of := filled(value)) is not None and names_device(text_of) and is_by_position(value):
                text, named = self._texts.of(str(text_of.value), place)
                parts += [text, *self._texts.filling(value)]
                imports += named
            elif isinstance(value, (ast.Starred, ast.Call, ast.JoinedStr, ast.Tuple, ast.List)):
                return
            else:
                parts.append(self._edits.span(value))
        assert isinstance(node.func, ast.Attribute)
        safe = place.runs and not is_own(node.func.value)  # whose own way to move may need no device
        self._edits.keep(Edit(self._edits.span(node), (*parts, ")"), safe, imports), node, place)

    def literal(self, node: ast.Constant, place: Place) -> None:
        """A device's name where a device is expected."""
        if self._may_name_device(place):
            text, imports = self._texts.of(node.value, place)  # type: ignore[arg-type]  # a string
            self._edits.keep(Edit(self._edits.span(node), (text,), self._uses(place), imports), node, place)

    def formatted(self, node: ast.JoinedStr, place: Place) -> None:
        """``f"cuda:{rank}"`` where a device is expected."""
        if not self._may_name_device(place):
            return
        if (made := self._texts.formatted(node, place)) is not None:
            self._edits.keep(
                Edit(self._edits.span(node), (made[0],), self._uses(place), made[1]), node, place
            )

    def collective(self, node: ast.Constant, place: Place) -> None:
        """The backend of ``init_process_group``."""
        fixed = place.frozen or place.scope.is_class
        if place.assigned == "backend" and node.value in words.COLLECTIVES and not fixed:
            here, imports = self._edits.here(place)
            self._edits.keep(
                Edit(self._edits.span(node), (f"{here}.collective_backend()",), place.runs, imports),
                node,
                place,
            )

    def _may_name_device(self, place: Place) -> bool:
        """Whether the value of an expression is a device to use: a class's own word says what the class is for."""
        fixed = place.frozen or place.compiled or place.scope.is_class
        return not fixed and words.may_hold_device(place.assigned)

    def _uses(self, place: Place) -> bool:
        """Whether a device's name is there to use that device, which fails where there is none.

        What is itself named after a vendor says for whom it is, settings of a type are taken without a device, and
        another object may only keep the word.
        """
        return place.runs and not (place.named or place.setting or place.told)
