from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import devicekit

PACKAGE = Path(devicekit.__file__).parent

# Everything that is written against Device alone.
NEUTRAL = ["scheduling", "memory", "weights", "residency", "release", "runners", "server", "observe"]
NEUTRAL += ["device", "engine"]
NEUTRAL_MODULES = ["oom"]
NAMING = {PACKAGE / "device/generic.py"}  # serves a device type that its caller names

VENDORS = (
    "cuda|cudnn|nvidia|nvml|pynvml|nccl|rocm|hip|amdsmi|rccl|xpu|intel|ipex|xccl|npu|ascend|hccl|cann|musa|mccl|"
    "mthreads|mps|hpu|habana|hccl|mtia|mlu|cncl|sdaa"
)
# A vendor's name as a word of its own or as a part of a name written with underscores or capitals.
NAMED = re.compile(rf"(?<![a-z])(?:{VENDORS})(?![a-z])", re.IGNORECASE)

_PARTS = re.compile(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])")  # between the words of SomeXYZName


def neutral_files() -> list[Path]:
    folders = [file for name in NEUTRAL for file in (PACKAGE / name).rglob("*.py")]
    modules = [PACKAGE / f"{name}.py" for name in NEUTRAL_MODULES]
    return sorted({*folders, *(file for file in modules if file.exists())} - NAMING)


def vendors_named(source: str) -> list[str]:
    """Line and text of each vendor's name in code, strings included, docstrings and comments excluded."""
    tree = ast.parse(source)
    docstrings = set(_docstrings(tree))
    found = []
    for node in ast.walk(tree):
        if id(node) not in docstrings:
            found += [
                f"{getattr(node, 'lineno', 0)}: {text}"
                for text in _texts(node)
                if NAMED.search(_PARTS.sub("_", text))
            ]
    return sorted(set(found))


def _docstrings(tree: ast.AST) -> Iterator[int]:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
                yield id(first.value)


def _texts(node: ast.AST) -> Iterator[str]:
    """Every name and string a node holds itself, whatever kind of node it is."""
    for _, value in ast.iter_fields(node):
        for one in value if isinstance(value, list) else [value]:
            if isinstance(one, str):
                yield one
            elif isinstance(one, bytes):
                yield one.decode("latin-1")


@pytest.mark.parametrize("file", neutral_files(), ids=lambda file: str(file.relative_to(PACKAGE)))
def test_nothing_above_device_names_a_vendor(file):
    assert vendors_named(file.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    "source",
    [
        "torch.cuda.empty_cache()",
        "from torch import npu",
        "import torch_npu",
        "import torch.xpu as gpu",
        "device = 'cuda:0'",
        "if device.type == 'musa': pass",
        "name = f'on {x} the mps device'",
        "def use_hip(): pass",
        "call(cuda=True)",
        "class NPUGraph: pass",
        "CUDA_VISIBLE_DEVICES = 1",
        "x = b'nccl'",
        "'''docs'''\nx = '''cuda'''",
        "import a.rocm.b",
        "global cuda_state",
    ],
)
def test_the_check_sees_a_vendor_however_it_is_written(source):
    assert len(vendors_named(source)) >= 1


@pytest.mark.parametrize(
    "source",
    [
        "'''On cuda this waits.'''\n",
        "x = 1  # as on npu",
        "class A:\n    '''cuda'''\n    def f(self):\n        '''npu'''",
        "ship = chip = input_ids",
        "torch.accelerator.synchronize()",
        "relationship = maps",
    ],
)
def test_the_check_leaves_docstrings_comments_and_other_words_alone(source):
    assert vendors_named(source) == []


# What these tell of comes from clients, files, the environment or other processes, and may be of any length.
TELLING = [
    "commands",
    "contract",
    "engine",
    "fleet",
    "memory",
    "ray_serve",
    "registry",
    "residency",
    "runners",
]
TELLING += ["scheduling", "server", "text", "weights"]


def unbounded(source: str) -> list[str]:
    """Line and text of each value whose repr is put into a message whatever its length."""
    tree = ast.parse(source)
    # In a module's __getattr__, names come from code and are short.
    code = {
        id(node)
        for function in ast.walk(tree)
        if isinstance(function, ast.FunctionDef) and function.name == "__getattr__"
        for node in ast.walk(function)
    }
    return [
        f"{node.lineno}: {ast.unparse(node.value)}"
        for node in ast.walk(tree)
        if isinstance(node, ast.FormattedValue)
        and node.conversion == ord("r")
        and id(node) not in code
        and not (node.format_spec is not None and "." in ast.unparse(node.format_spec))
        and not (isinstance(node.value, ast.Subscript) and isinstance(node.value.slice, ast.Slice))
    ]


@pytest.mark.parametrize("folder", TELLING)
def test_messages_are_of_bounded_length_whatever_is_told_in_them(folder):
    found = {
        str(file.relative_to(PACKAGE)): unbounded(file.read_text(encoding="utf-8"))
        for file in sorted((PACKAGE / folder).rglob("*.py"))
    }
    assert {name: lines for name, lines in found.items() if lines} == {}, "use devicekit.contract.text.shown"


@pytest.mark.parametrize(
    ("source", "count"),
    [
        ("f'{x!r}'", 1),
        ("f'a {x.y!r:>8}'", 1),
        ("f'{x!r:.100} {x[:100]!r} {shown(x)} {x}'", 0),
        ("def __getattr__(name): raise AttributeError(f'{name!r}')", 0),
    ],
)
def test_the_check_sees_what_has_no_bound(source, count):
    assert len(unbounded(source)) == count


def imported_by(statement: str) -> set[str]:
    script = f"import sys; {statement}; print(*sorted({{name.partition('.')[0] for name in sys.modules}}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    return set(done.stdout.split())


HEAVY = {"torch", "numpy", "transformers", "pluggy", "fastapi", "starlette", "uvicorn", "rich"}
PLUGINS = {f"devicekit_{name}" for name in ("cpu", "cuda", "musa", "npu", "rocm", "xpu")}


def test_importing_devicekit_imports_neither_torch_nor_any_plugin():
    assert imported_by("import devicekit") & (HEAVY | PLUGINS) == set()


def test_finding_and_choosing_import_no_torch_of_their_own():
    allowed = {"pluggy"}
    script = "import devicekit.registry.selection; devicekit.discover()"
    assert imported_by(script) & (HEAVY | PLUGINS) == allowed


def test_listing_what_is_installed_imports_nothing_that_opens_it():
    script = "import sys; from devicekit.cli import main; main(['list']); print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    opening = {"loading", "opened", "probing", "selection", "validation"}
    names = set(done.stdout.split())
    assert "devicekit.registry.discovery" in names
    assert {f"devicekit.registry.{part}" for part in opening} & names == set()


def test_the_contract_imports_no_torch():
    assert imported_by("import devicekit.contract") & (HEAVY | PLUGINS) == {"pluggy"}


def test_opening_devices_imports_no_engine_and_no_plugin():
    script = "import sys; from devicekit import get_device; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    names = set(done.stdout.split())
    engine = (
        "scheduling",
        "memory",
        "weights",
        "runners",
        "engine",
        "cli",
        "commands",
        "devtools",
        "testing",
    )
    assert {f"devicekit.{part}" for part in engine} & names == set()
    assert (PLUGINS | {"transformers"}) & names == set()


def test_every_public_name_resolves_and_is_listed():
    for name in devicekit.__all__:
        assert getattr(devicekit, name) is not None
    assert set(devicekit.__all__) <= set(dir(devicekit))
    with pytest.raises(AttributeError, match="no attribute 'get_devise'"):
        devicekit.get_devise  # noqa: B018
