"""Who may change what: nothing outside a room assigns to an attribute of another room's objects.

Read from the source, without running it. A room is a package directly below ``devicekit``, or a module beside.
"""

from __future__ import annotations

import ast
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

import devicekit

PACKAGE = Path(devicekit.__file__).parent
FILES = sorted(PACKAGE.rglob("*.py"))

# Attributes of other libraries' objects, which those libraries mean to be set.
FOREIGN = {
    "meanings",  # of a Starlette application's state
    "attn_implementation",
    "data",  # of torch's parameters
    "grad",
    "name_or_path",  # of a transformers config
    "forward",  # of a torch module
    "_attn",  # of transformers' modules and configs, from here on
    "_attn_implementation",
    "attn_temperature_tuning",
    "layer_idx",
    "num_experts",  # of transformers' modules that hold experts
    "_is_expert_parallel",
    "pre_tokenizer",
    "decoder",
    "chat_template",
    "serving",  # of Starlette's application state
    "openapi",
    "redirect_slashes",  # of its router
    "should_exit",  # of uvicorn's servers
    "keep_alive",  # of its answers under way
    "install_signal_handlers",
    "asked_to_stop",  # of our own web server, a part of uvicorn's
    "maxstring",  # of reprlib
    "maxother",
    "maxlong",
    "atexit",  # of weakref's finalizers
    "__new__",
    "__cause__",
    "__context__",
    "__traceback__",
    "_is_in_bad_fork",  # of a torch device module
    "current_device",
    "device",  # of an argparse namespace
}

THREADS = {"_thread", "_busy", "_asked"}  # threading.local: whatever is set there is their module's own

# Objects that the parts of a scheduler share: only their own module changes them.
SHARED = {
    "scheduling/requests.py": "Requests",
    "scheduling/gate.py": "AdmissionGate",
    "scheduling/deadlines.py": "Deadlines",
    "scheduling/participants.py": "Participants",
    "scheduling/waiting.py": "WaitingQueue",
    "scheduling/running.py": "RunningBatch",
    "scheduling/kv_cache/manager.py": "KVCacheManager",
    "scheduling/scheduler.py": "Scheduler",
    "scheduling/ranks/scheduler.py": "LockstepScheduler",
    "scheduling/verbs/control.py": "Control",
    "release/points.py": "ReleasePoints",
    "oom.py": "OutOfMemoryRecovery",
}


ROOMS_THAT_SHARE = {owner.split("/")[0] for owner in SHARED}


def room(file: Path) -> str:
    return file.relative_to(PACKAGE).parts[0]


def assigned(source: str) -> Iterator[tuple[int, str, str]]:
    """Line, object and attribute of each assignment to an attribute of anything but ``self`` and ``cls``."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Attribute) or not isinstance(node.ctx, (ast.Store, ast.Del)):
            continue
        if not (isinstance(node.value, ast.Name) and node.value.id in ("self", "cls")):
            yield node.lineno, ast.unparse(node.value), node.attr


@cache
def declared(source: str, name: str | None = None) -> frozenset[str]:
    """Attributes that the classes of a module declare, or one of them: fields, slots, setters, and ``self.x``."""
    found: set[str] = set()
    for cls in ast.walk(ast.parse(source)):
        if isinstance(cls, ast.ClassDef) and name in (None, cls.name):
            found.update(
                node.target.id
                for node in cls.body
                if isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name)
            )
            for node in ast.walk(cls):
                found.update(_declares(node))
    return frozenset(found)


def _declares(node: ast.AST) -> Iterator[str]:
    if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__slots__":
        yield from ast.literal_eval(node.value)
    elif isinstance(node, ast.FunctionDef) and any(
        isinstance(one, ast.Attribute) and one.attr == "setter" for one in node.decorator_list
    ):
        yield node.name
    elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and _is_self(node.value):
        yield node.attr


def _is_self(node: ast.AST) -> bool:
    return isinstance(node, ast.Name) and node.id == "self"


@cache
def of_room(name: str) -> frozenset[str]:
    """What the classes of a room declare."""
    files = [file for file in FILES if room(file) == name]
    return frozenset().union(*(declared(file.read_text(encoding="utf-8")) for file in files))


@cache
def guarded_from(file: str) -> frozenset[str]:
    """Attributes of shared objects that this file may not change. What records have under the same name is not."""
    shared: set[str] = set()
    for owner, name in SHARED.items():
        if owner != file:
            shared |= declared((PACKAGE / owner).read_text(encoding="utf-8"), name)
    records = ("scheduling/request.py", "scheduling/batch.py", "memory/prefix_node.py")
    return frozenset(shared).difference(
        *(declared((PACKAGE / one).read_text(encoding="utf-8")) for one in records)
    )


def trespasses(file: str, source: str) -> list[str]:
    """What a file assigns to that is not its room's, or that somebody else alone may change."""
    here = declared(source)
    found = []
    for line, target, attribute in assigned(source):
        if attribute in FOREIGN or attribute in here or target.rpartition(".")[2] in THREADS:
            continue
        mine = file.split("/")[0]
        # Elsewhere a record of that room may have a field of the same name.
        shares = mine in ROOMS_THAT_SHARE or "scheduler" in target or "state" in target
        if (
            attribute not in of_room(mine)
            or attribute.startswith("_")
            or (shares and attribute in guarded_from(file))
        ):
            found.append(f"{file}:{line}: {target}.{attribute}")
    return found


def test_nothing_assigns_to_what_another_room_or_a_shared_object_owns() -> None:
    found = []
    for file in FILES:
        found += trespasses(str(file.relative_to(PACKAGE)), file.read_text(encoding="utf-8"))
    assert found == []


@pytest.mark.parametrize(
    ("file", "source"),
    [
        ("commands/demo.py", "engine.scheduler.state.weight_version = 'first'"),
        ("devtools/doctor/engine.py", "engine.scheduler.state.runner = timed"),
        ("scheduling/verbs/pause.py", "state.gate._paused_at = 3"),
        ("scheduling/verbs/pause.py", "state.requests.weights_epoch += 1"),
        ("scheduling/planning.py", "self._state.requests.prefilling = []"),
        ("scheduling/ranks/scheduler.py", "self.scheduler.control = control"),
        ("scheduling/ranks/scheduler.py", "releases.coordinator = ranks"),
        ("server/loop.py", "del scheduler.state.kv.prefix"),
        ("weights/update.py", "for request.no_prefix_sharing in ():\n    pass"),
    ],
)
def test_the_check_sees_a_trespass(file: str, source: str) -> None:
    assert len(trespasses(file, source)) == 1


def test_what_is_ones_own_may_be_changed() -> None:
    source = "class A:\n    def f(self, request):\n        self.x = 1\n        request.total = 3"
    assert trespasses("scheduling/results.py", source) == []
