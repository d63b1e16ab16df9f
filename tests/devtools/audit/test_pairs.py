"""Rewrites that rest on more than one place of a file: graphs, its own functions, what it replaces."""

from __future__ import annotations

import ast
import itertools
import random
from pathlib import Path

import pytest

from devicekit.devtools.audit import mend
from devicekit.devtools.audit.rewrite import rewrite
from devicekit.devtools.audit.rules import analyse
from tests.seeds import drawn_seed

HERE = "devicekit.current_device()"


def fixed(code: str, *, unsafe: bool = False) -> str:
    edits = [one for one in analyse(code, "x.py").edits if one.safe or unsafe]
    return rewrite(code, edits)[0]


# -- Graphs -------------------------------------------------------------------------------------------------------

# What a function does with a graph, and how sure that makes a rewrite: 2 certain, 1 when asked, 0 never.
USES = {
    "g.replay()": 2,
    "g.reset()": 2,
    "for _ in range(3): g.replay()": 2,
    "run = lambda: g.replay()": 2,
    "keep(g)": 1,
    "self.graph = g": 1,
    "graphs[1] = g": 1,
    "return g": 1,
    "pool = g.pool()": 0,
    "g.enable_debug_mode()": 0,
    "g.capture_begin()": 0,
    "g = other()": 0,
    "with torch.cuda.graph(g, pool=p): y = f(x)": 0,
    "with torch.cuda.graph(g, stream=s): y = f(x)": 0,
    "context = torch.cuda.graph(g)": 0,
    "def again(g): g.replay()": 0,
}
ENTRIES = ("with torch.cuda.graph(g): y = f(x)", "with watch(), torch.cuda.graph(g): y = f(x)")


def captures(*uses: str, entry: str = ENTRIES[0]) -> str:
    lines = ("g = torch.cuda.CUDAGraph()", entry, *uses)
    return "import torch\n\nZERO = torch.zeros(1)\n\ndef capture(self, x, p, s):\n" + "".join(
        f"    {line}\n" for line in lines
    )


@pytest.mark.parametrize("seed", [drawn_seed("GRAPHS_SEED") + one for one in range(12)])
def test_a_graph_is_made_and_captured_by_one_side_or_the_other(seed: int) -> None:
    draw = random.Random(seed)
    for _ in range(12):
        uses = draw.sample(sorted(USES), draw.randint(0, 3))
        before = captures(*uses, entry=draw.choice(ENTRIES))
        sure = min((USES[one] for one in uses), default=2)
        for unsafe in (False, True):
            after = fixed(before, unsafe=unsafe)
            ast.parse(after)
            assert after.count("CUDAGraph()") + after.count("create_graph()") == 1
            rewritten = f"g = {HERE}.create_graph()" in after
            assert rewritten == (sure >= (1 if unsafe else 2)), after
            assert ("g.capture(): y" in after) == rewritten
            assert fixed(after, unsafe=unsafe) == after


def test_a_graph_that_is_not_captured_here_stays() -> None:
    for code in (captures(entry="pass"), captures(entry="with torch.cuda.graph(other): pass")):
        assert fixed(code, unsafe=True) == code


@pytest.mark.parametrize("waived", [0, 1])
def test_of_a_graph_with_a_waived_half_nothing_is_rewritten(tmp_path: Path, waived: int) -> None:
    lines = captures().splitlines()
    lines[5 + waived] += "  # devicekit: allow[DK001] a vendor's own"
    file = tmp_path / "engine.py"
    file.write_text("\n".join(lines) + "\n")
    assert mend([tmp_path]).edits == 0
    file.write_text(captures())
    assert mend([tmp_path]).edits == 2


# -- Parameters of the file's own functions -----------------------------------------------------------------------

HEADS = {
    "def make({}): pass": True,
    "async def make({}): pass": True,
    "@torch.no_grad()\ndef make({}): pass": True,
    "class make:\n    def __init__(self, {}): pass": True,
    "@changes\ndef make({}): pass": False,
    "@dataclass\nclass make:\n    def __init__(self, {}): pass": False,
    "class make(metaclass=M):\n    def __init__(self, {}): pass": False,
    "def make({}): pass\nmake = other": False,
    "class A:\n    def make(self, {}): pass": False,
}
PARAMETERS = {
    "device": True,
    "target_device": True,
    "device_type=None": True,
    "name": False,
    "backend": False,
}


@pytest.mark.parametrize(("head", "parameter"), list(itertools.product(HEADS, PARAMETERS)))
@pytest.mark.parametrize("place", [0, 2])
def test_a_literal_is_a_device_where_the_files_own_function_takes_one(
    head: str, parameter: str, place: int
) -> None:
    taken = [*(f"a{number}" for number in range(place)), parameter, "z=1"]
    given = [*map(str, range(place)), "'cuda'"]
    code = f"import torch\n{head.format(', '.join(taken))}\n\ndef use():\n    make({', '.join(given)})\n"
    device = f"    make({', '.join([*given[:-1], f'{HERE}.torch_device.type'])})"
    assert (device in fixed(code)) == (HEADS[head] and PARAMETERS[parameter])
    for other in ([*given[:-1], "*rest", "'cuda'"], [*given, "'cuda'"]):
        text = fixed(code.replace(", ".join(given), ", ".join(other)))
        assert "'cuda')" in text  # behind what nobody counts, and where another parameter stands


@pytest.mark.parametrize(
    "name", ["device", "_device", "self._device", "DEVICE", "DEFAULT_DEVICE", "_device_type"]
)
def test_a_name_that_devices_are_given_to_may_be_private_or_constant(name: str) -> None:
    assert f"{name} = {HERE}.torch_device.type" in fixed(f"import torch\ndef f(self):\n    {name} = 'cuda'\n")
    for other in ("Device", "deviceless", "devices", "DEVICES"):
        assert fixed(f"def f():\n    {other} = 'cuda'\n", unsafe=True) == f"def f():\n    {other} = 'cuda'\n"


@pytest.mark.parametrize("word", ["'cuda'", "'npu:0'", "f'cuda:{RANK}'", "torch.device('cuda')", "'nccl'"])
@pytest.mark.parametrize("declared", ["{} = {}", "{}: str = {}"])
def test_what_a_class_says_of_itself_is_no_device_to_use(word: str, declared: str) -> None:
    line = declared.format("backend" if word == "'nccl'" else "device_name", word)
    code = f"import torch\nRANK = 1\nclass Platform:\n    {line}\n"
    assert fixed(code, unsafe=True) == code


# -- What is replaced, compiled or asked for first ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("line", "replaced"),
    {
        "ALLOWED = {('torch.cuda', 'HalfStorage')}": False,
        "NAMES = ['torch.cuda.synchronize']": False,
        "load('torch.cuda.synchronize')": False,
        "patch('torch.cuda.synchronize')": True,
        "mocker.patch.object(torch.cuda, 'synchronize')": True,
        "monkeypatch.setattr('torch.cuda.synchronize', f)": True,
        "for name in ['torch.cuda.synchronize']: patch(name)": True,
        "for name in ['torch.cuda.synchronize']: p = mock.patch(name)": True,
        "replace_function('torch.cuda.synchronize', f)": True,
        "sys.modules['torch.cuda'] = fake": True,
        "del sys.modules['torch.cuda']": True,
        "module = sys.modules['torch.cuda']": False,
        "torch.cuda.synchronize = f": True,
        "del torch.cuda.synchronize": True,
        "setattr(torch.cuda, 'synchronize', f)": True,
        "setattr(torch.cuda, name, f)": True,
    }.items(),
)
def test_a_path_as_text_counts_as_replaced_only_where_something_can_replace_it(
    line: str, replaced: bool
) -> None:
    code = f"import torch\n{line}\n\ndef f():\n    torch.cuda.synchronize()\n"
    assert (f"    {HERE}.synchronize()" in fixed(code)) is not replaced


@pytest.mark.parametrize(
    ("head", "compiled"),
    {
        "from engine.jit.utils import once\n@once": False,
        "from engine.compile import steps\n@steps.once": False,
        "from engine.jit import kernel as k\n@k": False,
        "from engine import jit\n@jit.kernel": True,
        "from triton import jit as quick\n@quick": True,
        "import triton as t\n@t.jit(debug=True)": True,
        "import numba as n\n@n.njit": True,
        "import torch.jit as tj\n@tj.script": True,
        "from torch import compile as c\n@c": True,
    }.items(),
)
def test_a_folder_called_after_a_compiler_is_none(head: str, compiled: bool) -> None:
    code = f"import torch\n{head}\ndef f():\n    torch.cuda.synchronize()\n"
    assert (f"    {HERE}.synchronize()" in fixed(code)) is not compiled


@pytest.mark.parametrize("rest", ["", " and x", " and x and y"])
def test_whether_torch_has_the_module_is_asked_with_whether_there_is_one(rest: str) -> None:
    code = (
        f"import torch\ndef f(x, y):\n    return hasattr(torch, 'xpu') and torch.xpu.is_available(){rest}\n"
    )
    assert fixed(code) == code
    assert f"    return devicekit.accelerator_available(){rest}\n" in fixed(code, unsafe=True)
    assert [one.fix for one in analyse(code, "x.py").findings] == ["unsafe", "unsafe"]
    other = code.replace("'xpu'", "'npu'")
    assert "hasattr(torch, 'npu') and" in fixed(other, unsafe=True)


@pytest.mark.parametrize(
    ("read", "after"),
    {
        "torch.cuda.device(i).idx": None,
        "torch.cuda.stream(s).src_prev_stream": None,
        "torch.cuda.current_stream(i).device": None,
        "torch.cuda.Stream().cuda_stream_id": None,
        "torch.cuda.get_device_properties(i).warp_size": None,
        "torch.cuda.get_device_properties(i).total_memory": "devicekit.device_for(i).properties().total_memory",
        "torch.cuda.current_stream(i).query()": "devicekit.device_for(i).current_stream().query()",
        "torch.cuda.Event(enable_timing=True).elapsed_time(s)":
            f"{HERE}.create_event(timing=True).elapsed_time(s)",
        "torch.cuda.memory_stats(i).anything": "devicekit.device_for(i).memory_stats().raw.anything",
    }.items(),
)  # fmt: skip
def test_what_only_the_vendors_thing_has_is_not_read_of_devicekits(read: str, after: str | None) -> None:
    code = f"import torch\nZERO = torch.zeros(1)\ndef f(i, s):\n    return {read}\n"
    assert fixed(code, unsafe=True).endswith(f"    return {after or read}\n")


@pytest.mark.parametrize("word", ["global", "nonlocal"])
def test_a_function_without_a_vendors_name_may_still_rebind_one(word: str) -> None:
    inner = f"    def g():\n        {word} torch\n        torch = 1\n"
    outer = "import torch\ndef f():\n" if word == "global" else "def f():\n    import torch\n"
    code = f"{outer}{inner}    torch.cuda.synchronize()\n"
    assert fixed(code, unsafe=True) == code
