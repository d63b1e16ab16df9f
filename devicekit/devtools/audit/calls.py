"""Decides what can be written in place of names of a vendor's module: calls, what is read of them, graphs."""

from __future__ import annotations

import ast

from devicekit.devtools.audit import words
from devicekit.devtools.audit.beside import ACTIVITIES
from devicekit.devtools.audit.edits import Edits
from devicekit.devtools.audit.findings import Edit
from devicekit.devtools.audit.graphs import Captured, captured_in
from devicekit.devtools.audit.guards import Guards
from devicekit.devtools.audit.names import Scope
from devicekit.devtools.audit.place import Place
from devicekit.devtools.audit.rendering import NEED_PARENTHESES, Part, Rendering, keeps_order
from devicekit.devtools.audit.syntax import arguments_of, last_name
from devicekit.devtools.audit.table import (
    ANNOTATIONS,
    CONTEXTS,
    NEAR_PROPERTIES,
    PROPERTIES,
    READ,
    STATISTICS,
    Replacement,
    replacement_of,
)


class Calls:
    """The names of vendors' modules in one file."""

    def __init__(self, edits: Edits, guards: Guards, patched: set[str], text: str) -> None:
        self._edits = edits
        self._guards = guards
        self._patched = patched
        self._graphs: dict[ast.Call, Captured] = {}
        self._handed: set[ast.Call] = set()
        self._entered: set[ast.AST] = set()  # where a context may be made, which is entered once
        self._read: dict[ast.expr, str] = {}  # attributes of what calls give
        self._has_graphs = "Graph()" in text

    def whole_graphs(self, kept: dict[ast.AST, Edit]) -> dict[ast.AST, Edit]:
        """Edits without those of a graph of which a call stays."""
        for one in self._graphs.values():
            if not kept.keys() >= set(one.calls):
                kept = {node: edit for node, edit in kept.items() if node not in one.calls}
        return kept

    def follow_graphs(self, node: ast.AST, scope: Scope) -> None:
        """Note the graphs that a function makes and captures."""

        def name_of(call: ast.Call) -> str:
            _, row = self._edits.row(call.func, scope)
            return "" if row is None else row.name

        for one in captured_in(node, scope, name_of) if self._has_graphs else ():
            self._graphs.update(dict.fromkeys(one.calls, one))

    def hand_on(self, node: ast.Call) -> None:
        """Note what a call is given that is a call itself: a context that is not entered may be asked anything."""
        if ast.unparse(node.func).endswith(("enter_context", "enter_async_context")):
            self._entered.update(one for argument in arguments_of(node) for one in ast.walk(argument))
        else:
            self._handed.update(one for one in arguments_of(node) if isinstance(one, ast.Call))

    def enter(self, node: ast.expr) -> None:
        """Note what ``with`` enters."""
        self._entered.update(ast.walk(node))

    def call(self, node: ast.Call, path: str, place: Place) -> None:
        """A call of a vendor module's function or class."""
        if (captured := self._graphs.get(node)) is not None:
            self._graph(node, captured, path, place)
            return
        row = replacement_of(path)
        if row is None or not row.code or not row.called:
            return
        if (read := self._read.get(node)) is not None and read not in READ.get(row.name, {read}):
            return
        if row.name in ("stream", "StreamContext") and not (node.args or node.keywords):
            return
        self._replace_call(node, node, row, row.expression, path, place)

    def _graph(self, node: ast.Call, captured: Captured, path: str, place: Place) -> None:
        """``graph = CUDAGraph()`` and ``with torch.cuda.graph(graph)``."""
        if place.frozen or place.compiled or path.split(".")[2] in self._patched:
            return
        here, imports = self._edits.here(place)
        made = node is captured.made
        parts: tuple[Part, ...] = (
            (f"{here}.create_graph()",) if made else (self._edits.span(node.args[0]), ".capture()")
        )
        safe = place.runs and not captured.leaves
        group = self._edits.span(captured.made)
        self._edits.keep(
            Edit(self._edits.span(node), parts, safe, imports if made else (), group), node, place
        )

    def attribute_of_call(self, node: ast.Attribute, place: Place) -> bool:
        """``get_device_properties().total_memory`` and the like; whether it is one."""
        call = node.value
        self._read[call] = node.attr
        if (
            not isinstance(call, ast.Call)
            or not isinstance(node.ctx, ast.Load)
            or (field := PROPERTIES.get(node.attr) or NEAR_PROPERTIES.get(node.attr)) is None
        ):
            return False
        path, row = self._edits.row(call.func, place.scope)
        if row is None or row.name != "get_device_properties":
            return False
        wanted = ast.Attribute(row.expression, field, ast.Load())
        return self._replace_call(node, call, row, wanted, path, place, certain=node.attr in PROPERTIES)

    def item_of_call(self, node: ast.Subscript, place: Place) -> bool:
        """``memory_stats()["..."]`` and ``mem_get_info()[0]``; whether it is one."""
        call, key = node.value, node.slice
        if (
            not isinstance(call, ast.Call)
            or not isinstance(node.ctx, ast.Load)
            or not isinstance(key, ast.Constant)
        ):
            return False
        path, row = self._edits.row(call.func, place.scope)
        if row is not None and row.name == "memory_stats" and key.value in STATISTICS:
            code = f"device.memory_stats().{STATISTICS[str(key.value)]}"
        elif row is not None and row.name == "mem_get_info" and key.value in (0, 1):
            code = f"device.memory_info().{'total' if key.value else 'free'}"
        else:
            return False
        return self._replace_call(node, call, row, ast.parse(code, mode="eval").body, path, place)

    def attribute(self, node: ast.expr, path: str, place: Place) -> None:
        """A name of a vendor module that is not called."""
        name = ".".join(path.split(".")[2:])
        row = replacement_of(path)
        if place.compiled or not isinstance(getattr(node, "ctx", None), ast.Load):
            return
        if path.startswith(f"{ACTIVITIES}.") and not place.annotation:
            here, imports = self._edits.here(place)
            self._edits.keep(
                Edit(self._edits.span(node), (f"{here}.profiler_activity()",), False, imports), node, place
            )
        if row is None:
            return
        if place.annotation and name in ANNOTATIONS:
            self._edits.keep(Edit(self._edits.span(node), (ANNOTATIONS[name],), safe=True), node, place)
        elif not row.called and row.code.startswith("torch.") and (torch := self._edits.torch(node, place)):
            code = row.code.replace("torch", torch, 1)
            self._edits.made[node] = Edit(self._edits.span(node), (code,), safe=True, imports=())

    def native_handle(self, node: ast.Attribute, place: Place) -> str:
        """``stream.cuda_stream``; what to write instead, if names say that it is a stream's or an event's."""
        whose = node.value
        self._read.pop(whose, None)
        call = whose.func if isinstance(whose, ast.Call) else None
        name = last_name(whose)
        if not isinstance(node.ctx, ast.Load) or not ("stream" in name or "event" in name):
            return ""
        if node.attr.endswith("event"):
            return "the methods of the event; what a vendor's own kernels need stays with them, waived"
        if not (place.frozen or place.compiled or isinstance(whose, NEED_PARENTHESES)):
            # What a name stands for may be an object of the engine's own.
            certain = call is not None and words.is_vendor(self._edits.path(call, place.scope))
            here, imports = self._edits.here(place)
            parts = (f"{here}.native_handle(", self._edits.span(whose), ")")
            self._edits.keep(
                Edit(self._edits.span(node), parts, certain and place.runs, imports), node, place
            )
        return "device.native_handle(stream)"

    def _replace_call(
        self,
        whole: ast.expr,
        call: ast.Call,
        row: Replacement,
        wanted: ast.expr,
        path: str,
        place: Place,
        *,
        certain: bool = False,
    ) -> bool:
        """Note an edit of ``whole``, in which ``call`` gives the arguments; whether there is one."""
        if place.frozen or place.compiled or place.annotation or path.split(".")[2] in self._patched:
            return False
        given = row.given_by(call)
        if given is None or (call in self._handed and row.name in CONTEXTS):
            return False
        if isinstance(inner := given.get("device"), ast.Call) and len(inner.args) == 1:
            path_of = self._edits.path(inner.func, place.scope)
            if words.is_vendor(path_of) and path_of.endswith(
                ".device"
            ):  # torch takes its own context for an index
                given["device"] = inner.args[0]
        which = given.get("device") if row.name == "set_device" else given.pop("device", None)
        handle = self._edits.handle(which, place)
        named = {one.id for one in ast.walk(wanted) if isinstance(one, ast.Name)}
        dropped = [name for name in given if name not in named]
        if handle is None or any(ast.unparse(given[name]) != row.parameters[name] for name in dropped):
            return False
        torch = self._edits.torch(call.func, place) if "torch" in named else "torch"
        if not torch:
            return False
        parts = Rendering(given, handle[0], torch, self._edits.span).parts(wanted)
        imports = (handle[1] if "device" in named else ()) + (("devicekit",) if "devicekit" in named else ())
        asked = (*given.values(), *(() if which is None else (which,)))
        about = place.named and row.name in ("device_count", "is_available")
        chosen = words.vendors_in(path) <= words.CHOSEN
        # torch's contexts can be kept, and entered again.
        once = row.name not in CONTEXTS or call in self._entered
        safe = (
            (row.certain or certain)
            and chosen
            and place.runs
            and once
            and keeps_order(asked, parts)
            and not about
        )
        edit = Edit(self._edits.span(whole), tuple(parts), safe, imports)
        self._edits.keep(edit, whole, place)
        if row.name == "is_available":
            self._guards.ask(whole, place.scope, row.name, path.split(".")[-2])
        return whole in self._edits.made
