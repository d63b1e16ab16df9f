"""Decides what can be written in place of a finding, and whether that is certain to mean the same.

An edit is safe if the code does the same as before on every machine where the old code ran: on that vendor's
device, and without any. What is evaluated while a module is imported would open a device then, so it is offered
as unsafe. In defaults, decorators and functions that a compiler reads nothing is touched.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace

from devicekit.devtools.audit import words
from devicekit.devtools.audit.beside import ACTIVITIES
from devicekit.devtools.audit.chosen import ChosenDevice, index_of
from devicekit.devtools.audit.findings import Edit, Span
from devicekit.devtools.audit.graphs import Captured, captured_in
from devicekit.devtools.audit.guards import Guards
from devicekit.devtools.audit.marks import Marks
from devicekit.devtools.audit.names import Names, Scope
from devicekit.devtools.audit.patched import patched
from devicekit.devtools.audit.place import Place
from devicekit.devtools.audit.questions import Asked, device_asked, tensor_asked
from devicekit.devtools.audit.rendering import NEED_PARENTHESES, Part, Rendering, keeps_order
from devicekit.devtools.audit.source import Source
from devicekit.devtools.audit.syntax import (
    arguments_of,
    filled,
    is_by_position,
    is_class_name,
    is_none,
    is_own,
    last_name,
    names_device,
)
from devicekit.devtools.audit.table import (
    ANNOTATIONS,
    ANY_VENDOR,
    ANY_WORD,
    CONTEXTS,
    NEAR_PROPERTIES,
    PROPERTIES,
    READ,
    STATISTICS,
    Replacement,
    replacement_of,
)
from devicekit.devtools.audit.texts import Texts

# What reads a function's code, and what such a compiler calls as it is.
_COMPILERS = re.compile(r"jit|compile|(?<![a-z])script|register_fake|triton|numba|(?<![a-z])trace")
_COMPILER_PACKAGES = ("triton.", "numba.", "torch.jit.", "torch.compile")
# What code says that TorchScript reads from elsewhere, by a call or as part of something larger.
_SCRIPTED = re.compile(
    r"\bjit\.(?:script|is_scripting|export|annotate|interface|Final|Future|fork|wait|Attribute)\b"
)
_NOT_COMPILED = re.compile(r"\.(disable|ignore|unused)$")


class Editor:
    """The edits of one file."""

    def __init__(
        self, names: Names, text: str, tree: ast.Module, marks: Marks, device_name: str | None
    ) -> None:
        self._names = names
        self._source = Source(text)
        self._chosen = ChosenDevice(names, tree, device_name)
        self._texts = Texts(names, self._source, self._chosen)
        self._edits: dict[ast.AST, Edit] = {}
        bound = names.module.bound.get("devicekit")  # then the file may have named others before
        self._guards = Guards(tree, marks, words.vendors_in(text) | ({"cuda"} if bound else set()))
        self._patched = patched(tree, text, marks)
        self._graphs: dict[ast.Call, Captured] = {}
        self._handed: set[ast.Call] = set()
        self._entered: set[ast.AST] = set()  # where a context may be made, which is entered once
        self._comprehensions: list[ast.AST] = []
        self._read: dict[ast.expr, str] = {}  # attributes of what calls give
        self._scripted = _SCRIPTED.search(text) is not None
        self._has_graphs = "Graph()" in text
        self._possible = all(one == "devicekit" for one in bound or ()) and "*" not in self._patched

    def follow(self, node: ast.stmt, rest: Sequence[ast.stmt]) -> None:
        """Note what comes after a statement in its block."""
        self._guards.follow(node, rest)

    def settle(self, found: Iterable[ast.AST]) -> dict[ast.AST, Edit]:
        """Every edit of a finding, once all findings are known."""
        if not self._possible:
            return {}
        places = list(found)
        kept = {node: self._edits[node] for node in places if node in self._edits}
        for comprehension in self._comprehensions:
            inside = set(ast.walk(comprehension)).intersection(places)
            if not all(one in kept and kept[one].safe for one in inside):  # half of it is no better than none
                kept |= {one: replace(kept[one], safe=False) for one in inside if one in kept}
        for one in self._graphs.values():
            if not kept.keys() >= set(one.calls):
                kept = {node: edit for node, edit in kept.items() if node not in one.calls}
        return self._guards.settle(kept, set(places))

    def mention(self, node: ast.AST) -> None:
        """Note a question for some vendor, whether or not it can be rewritten."""
        self._guards.mention(node, words.vendors_in(ast.unparse(node)))

    def swallowed(self, node: ast.AST, edits: Iterable[Edit]) -> Edit | None:
        """The edit that takes ``node`` away with what is around it."""
        span = self._source.span(node)
        around = (one for one in edits if _within(span, one.span))
        kept = ((one, [part for part in one.parts if not isinstance(part, str)]) for one in around)
        return next((one for one, parts in kept if not any(_within(span, part) for part in parts)), None)

    def hand_on(self, node: ast.Call) -> None:
        """Note what a call is given that is a call itself: a context that is not entered may be asked anything."""
        if ast.unparse(node.func).endswith(("enter_context", "enter_async_context")):
            self._entered.update(one for argument in arguments_of(node) for one in ast.walk(argument))
        else:
            self._handed.update(one for one in arguments_of(node) if isinstance(one, ast.Call))

    def enter(self, node: ast.expr) -> None:
        """Note what ``with`` enters."""
        self._entered.update(ast.walk(node))

    def comprehend(self, node: ast.AST) -> None:
        """Note a comprehension, whose parts speak of the same device."""
        self._comprehensions.append(node)

    def follow_graphs(self, node: ast.AST, scope: Scope) -> None:
        """Note the graphs that a function makes and captures."""

        def name_of(call: ast.Call) -> str:
            path = self._names.path(call.func, scope) or ""
            row = replacement_of(path) if words.is_vendor(path) else None
            return "" if row is None else row.name

        for one in captured_in(node, scope, name_of) if self._has_graphs else ():
            self._graphs.update(dict.fromkeys(one.calls, one))

    # -- What surrounds an expression -------------------------------------------------------------------------

    def compiles(self, decorator: ast.expr, scope: Scope) -> bool:
        """Whether a decorator hands the function to a compiler, which knows torch's own names only."""
        inner = decorator.func if isinstance(decorator, ast.Call) else decorator
        written = ast.unparse(inner)
        path = self._names.path(inner, scope) or written
        # A package that lies in a folder "jit" is no compiler yet: a compiler's own name says it, or the code.
        known = path.startswith(_COMPILER_PACKAGES) or _COMPILERS.search(written) is not None
        compiles = known or _COMPILERS.search(path.rpartition(".")[2]) is not None
        return compiles and _NOT_COMPILED.search(path) is None

    def device_parameter(self, node: ast.FunctionDef | ast.AsyncFunctionDef, scope: Scope) -> str:
        """A parameter that is a Device."""
        return self._chosen.parameter(node, scope)

    def switches(self, node: ast.expr, scope: Scope) -> bool:
        """Whether entering ``node`` makes another device current."""
        if not isinstance(node, ast.Call):
            return False
        path = self._names.path(node.func, scope) or ""
        return path.startswith("torch.") and path.rpartition(".")[2] in (
            "device",
            "device_of",
            "device_index",
        )

    # -- Edits ------------------------------------------------------------------------------------------------

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
        here, imports = self._chosen.here(place)
        made = node is captured.made
        parts: tuple[Part, ...] = (
            (f"{here}.create_graph()",) if made else (self._source.span(node.args[0]), ".capture()")
        )
        safe = place.runs and not captured.leaves
        group = self._source.span(captured.made)
        self._keep(Edit(self._source.span(node), parts, safe, imports if made else (), group), node, place)

    def presence(self, node: ast.BoolOp, place: Place) -> None:
        """``hasattr(torch, "xpu") and torch.xpu.is_available()``, which is one question."""
        asked, edit = node.values[0], self._edits.get(node.values[1])
        available = node.values[1]
        if edit is None or not isinstance(asked, ast.Call) or not isinstance(available, ast.Call):
            return
        path = self._names.path(available.func, place.scope) or ""
        module, _, name = path.rpartition(".")
        has = self._names.path(asked.func, place.scope) == "hasattr" and len(asked.args) == 2
        if isinstance(node.op, ast.And) and has and name == "is_available":
            owner, key = asked.args
            if (
                isinstance(key, ast.Constant)
                and isinstance(key.value, str)
                and f"{self._names.path(owner, place.scope)}.{key.value}" == module
            ):
                span = (self._source.span(asked)[0], self._source.span(available)[1])
                self._edits[available] = replace(edit, span=span)
                if len(node.values) == 2:
                    self._guards.stand(node, available)

    def one_question(self, node: ast.BoolOp) -> None:
        """``torch.cuda.is_available() or torch.xpu.is_available()`` and the like: one question, for any vendor."""
        questions, negated = self._guards.join(node)
        edits = [self._edits.pop(one) for one in questions if one in self._edits]
        if questions and len(edits) == len(questions):
            first = edits[0].parts[0]
            assert isinstance(first, str)
            parts = (f"{'not ' if negated else ''}{first.removeprefix('not ')}", *edits[0].parts[1:])
            safe = all(one.safe for one in edits)
            self._edits[questions[0]] = replace(
                edits[0], span=self._source.span(node), parts=parts, safe=safe
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
        path = self._names.path(call.func, place.scope) or ""
        row = replacement_of(path) if words.is_vendor(path) else None
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
        path = self._names.path(call.func, place.scope) or ""
        row = replacement_of(path) if words.is_vendor(path) else None
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
            here, imports = self._chosen.here(place)
            self._keep(
                Edit(self._source.span(node), (f"{here}.profiler_activity()",), False, imports), node, place
            )
        if row is None:
            return
        if place.annotation and name in ANNOTATIONS:
            self._keep(Edit(self._source.span(node), (ANNOTATIONS[name],), safe=True), node, place)
        elif not row.called and row.code.startswith("torch.") and (torch := self._torch(node, place)):
            code = row.code.replace("torch", torch, 1)
            self._edits[node] = Edit(self._source.span(node), (code,), safe=True, imports=())

    def move(self, node: ast.Call, place: Place) -> None:
        """``tensor.cuda()``."""
        assert isinstance(node.func, ast.Attribute)
        receiver = node.func.value
        imported = self._names.path(receiver, place.scope)
        named = imported is not None and (imported in words.PACKAGES or self._is_imported(receiver, place))
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
        handle = self._handle(given.pop("device", None), place)
        if handle is None or any(isinstance(one, ast.Starred) for one in node.args):
            return
        parts, imports = handle
        parts = (".to(", *parts, ".torch_device")
        for name, value in given.items():
            parts = (*parts, f", {name}=", self._source.span(value))
        # An object of the engine's own moves itself as it likes, and may do one by the other.
        own = is_own(receiver)
        methods = self._names.methods()
        if own and not methods.isdisjoint({node.func.attr, "to"}):
            return
        safe = place.runs and not own and node.func.attr not in methods and keeps_order(asked, parts)
        self._keep(Edit(self._source.span(node), (*parts, ")"), safe, imports), node, place)

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
                parts.append(self._source.span(value))
        assert isinstance(node.func, ast.Attribute)
        safe = place.runs and not is_own(node.func.value)  # whose own way to move may need no device
        self._keep(Edit(self._source.span(node), (*parts, ")"), safe, imports), node, place)

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
            certain = call is not None and words.is_vendor(self._names.path(call, place.scope) or "")
            here, imports = self._chosen.here(place)
            parts = (f"{here}.native_handle(", self._source.span(whose), ")")
            self._keep(Edit(self._source.span(node), parts, certain and place.runs, imports), node, place)
        return "device.native_handle(stream)"

    def tensor_question(self, node: ast.Attribute, place: Place) -> str:
        """``tensor.is_cuda``; what to ask instead, if it is one."""
        asked = tensor_asked(node)
        if asked is None or self._is_imported(asked.whose, place):
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
            parts = (f"{first}devicekit.on_accelerator(", self._source.span(whose), ")")
            # What is on no vendor's device may be on one that devicekit has no backend for, as on a Mac.
            self._keep(Edit(self._source.span(node), parts, False, ("devicekit",)), node, place)
        return "devicekit.on_accelerator(tensor or device)"

    def literal(self, node: ast.Constant, place: Place) -> None:
        """A device's name where a device is expected."""
        if self._may_name_device(place):
            text, imports = self._texts.of(node.value, place)  # type: ignore[arg-type]  # a string
            self._keep(Edit(self._source.span(node), (text,), self._uses(place), imports), node, place)

    def formatted(self, node: ast.JoinedStr, place: Place) -> None:
        """``f"cuda:{rank}"`` where a device is expected."""
        if not self._may_name_device(place):
            return
        if (made := self._texts.formatted(node, place)) is not None:
            self._keep(Edit(self._source.span(node), (made[0],), self._uses(place), made[1]), node, place)

    def collective(self, node: ast.Constant, place: Place) -> None:
        """The backend of ``init_process_group``."""
        fixed = place.frozen or place.scope.is_class
        if place.assigned == "backend" and node.value in words.COLLECTIVES and not fixed:
            here, imports = self._chosen.here(place)
            self._keep(
                Edit(self._source.span(node), (f"{here}.collective_backend()",), place.runs, imports),
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

    # -- Parts ------------------------------------------------------------------------------------------------

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
            path_of = self._names.path(inner.func, place.scope) or ""
            if words.is_vendor(path_of) and path_of.endswith(
                ".device"
            ):  # torch takes its own context for an index
                given["device"] = inner.args[0]
        which = given.get("device") if row.name == "set_device" else given.pop("device", None)
        handle = self._handle(which, place)
        named = {one.id for one in ast.walk(wanted) if isinstance(one, ast.Name)}
        dropped = [name for name in given if name not in named]
        if handle is None or any(ast.unparse(given[name]) != row.parameters[name] for name in dropped):
            return False
        torch = self._torch(call.func, place) if "torch" in named else "torch"
        if not torch:
            return False
        parts = Rendering(given, handle[0], torch, self._source.span).parts(wanted)
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
        edit = Edit(self._source.span(whole), tuple(parts), safe, imports)
        self._keep(edit, whole, place)
        if row.name == "is_available":
            self._guards.ask(whole, place.scope, row.name, path.split(".")[-2])
        return whole in self._edits

    def _handle(
        self, argument: ast.expr | None, place: Place
    ) -> tuple[tuple[Part, ...], tuple[str, ...]] | None:
        """The parts of an expression for the device that an argument names; ``None``: that is not known."""
        here, imports = self._chosen.here(place)
        if argument is None or is_none(argument):
            return (here,), imports
        if isinstance(argument, (ast.Starred, *NEED_PARENTHESES)):
            return None
        if isinstance(argument, ast.Constant) and isinstance(argument.value, str):
            index = index_of(argument.value)
            if index is None:
                return None
            return ((f"devicekit.device_for({index})",), ("devicekit",)) if index else ((here,), imports)
        if isinstance(argument, ast.JoinedStr):
            return None
        if isinstance(argument, ast.Call):
            path = self._names.path(argument.func, place.scope) or ""
            if words.is_vendor(path) and path.endswith(".current_device"):
                return (here,), imports
        if ast.unparse(argument) == here:
            return (here,), imports
        return ("devicekit.device_for(", self._source.span(argument), ")"), ("devicekit",)

    def _torch(self, node: ast.expr, place: Place) -> str:
        """The name by which code has torch at hand; empty if it has not."""
        first = node
        while isinstance(first, ast.Attribute):
            first = first.value
        if isinstance(first, ast.Name) and self._names.path(first, place.scope) == "torch":
            return first.id
        return ""

    def _is_imported(self, node: ast.expr, place: Place) -> bool:
        """Whether an expression is a module or class that the file imports."""
        first = node
        while isinstance(first, ast.Attribute):
            first = first.value
        if not isinstance(first, ast.Name):
            return False
        home = place.scope.home(first.id)
        return home is not None and any(isinstance(one, str) for one in home.bound[first.id])

    def _keep(self, edit: Edit, node: ast.AST, place: Place) -> None:
        text = "".join(part for part in edit.parts if isinstance(part, str))
        if (
            self._scripted
            or place.apart
            or place.caught
            or not words.vendors_in(ast.unparse(node)) <= words.CHOSEN
        ):
            edit = replace(edit, safe=False)
        home = place.scope.home("devicekit")
        hidden = home not in (None, self._names.module) and "devicekit" in edit.imports
        if not hidden and not (place.formatted and ('"' in text or "'" in text)):
            self._edits[node] = edit


def _within(inner: Span, outer: Span) -> bool:
    return outer[0] <= inner[0] and inner[1] <= outer[1]
