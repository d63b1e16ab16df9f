"""Programs run before and after `--fix`: what they ask of the machine, and what comes of it, stays the same."""

from __future__ import annotations

import ast
import random

import pytest

from tests.devtools.audit.fixing import fixed
from tests.devtools.audit.machine import Machine
from tests.seeds import drawn_seed

# How a file comes by torch: the lines at its top, what it then calls the vendor's module, and torch.
IMPORTS = (
    ("import torch", "torch.cuda", "torch"),
    ("import torch as T", "T.cuda", "T"),
    ("import torch.cuda", "torch.cuda", "torch"),
    ("import torch, torch.cuda as tc", "tc", "torch"),
    ("from torch import cuda\nimport torch", "cuda", "torch"),
    ("try:\n    import torch\nexcept ImportError:\n    torch = None", "torch.cuda", "torch"),
    ("if True:\n    import torch", "torch.cuda", "torch"),
    ("import torch; import sys", "torch.cuda", "torch"),
    ("import torch\ncuda = torch.cuda", "cuda", "torch"),
    ("import torch\ncuda = getattr(torch, 'cuda')", "cuda", "torch"),
)
# What stands above and between: nothing of it may end up in another place, or take a name away.
HEADS = (
    "",
    '"""A module."""\n',
    "#!/usr/bin/env python\n# A program.\n",
    "from __future__ import annotations\n",
    '"""A module."""\n\nfrom __future__ import annotations\n\n__all__ = ["f0"]\n',
    "import os, sys\n",
    "X = 1\n",
    "try:\n    import missing\nexcept ImportError:\n    missing = None\n",
    "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from missing import Thing\n",
)
MIDDLES = (
    "",
    "from os.path import *\n",
    "LATER = None\n",
    "def early(): return {c}.device_count()\nnote('early', early())\nimport string\n",
    "class Early:\n    def __init__(self): self.own()\n    def own(self): self.device = 'cuda'\nEARLY = Early()\n",
    "def first(): return second()\ndef second():\n    device = 'cuda'\n    return device\nFIRST = [first()]\n",
    "def mark(f):\n    note({c}.device_count())\n    return f\n@mark\ndef marked(): {c}.synchronize()\n",
    "def d(k):\n    def to(f):\n        device = 'cuda'\n        return f\n    return to\n@d(1)\ndef g(): 0\n",
    "class Late:\n    def __init__(self): self.device = 'cuda'\n    def copy(self): return Late()\n",
    "def each(i): return {c}.device_count() * i\nnote(list(map(each, [1])))\n",
    "def devicekit(): pass\n",
    "note('module', {c}.is_available())\n",
    "ANY = {c}.is_available()\n",
    "NAMED: 'torch.Tensor' = None\n",
)
# Expressions ("{c}" is the vendor's module, "{t}" torch), with what calls beside them can do.
VALUES = (
    "{c}.current_device()",
    "{c}.device_count()",
    "{c}.mem_get_info()",
    "{c}.mem_get_info(i)[0]",
    "{c}.current_stream()",
    "{c}.current_stream(i)",
    "{c}.get_device_name(i)",
    "{c}.Event(enable_timing=True)",
    "{c}.Stream(priority=note('priority'))",
    "{c}.Stream(i, -1)",
    "{c}.synchronize(device=i)",
    "{c}.synchronize('cuda:1')",
    "{c}.synchronize(x.cuda().device)",
    "{c}.set_rng_state(note('state'), note('index') and 1)",
    "{c}.set_rng_state(new_state=note('state'), device=i)",
    "{c}.set_rng_state(device=(note('index') and 1), new_state=note('state'))",
    "{c}.get_rng_state(i)",
    "{c}.empty_cache()",
    "{c}.reset_peak_memory_stats()",
    "{c}.set_device(i)",
    "x.cuda()",
    "x.cuda(i, non_blocking=True)",
    "x.cuda(non_blocking=note('flag'))",
    "(lambda: x)().cuda(device=i)",
    "x.to('cuda')",
    "x.to('cuda:1', non_blocking=True)",
    "x.to(device='cuda', dtype=note('dtype'))",
    "x.to(f'cuda:{{i}}')",
    "x.to('cuda:{{}}'.format(i))",
    "x.to(f'cuda:{{i % {c}.device_count()}}')",
    "{t}.zeros(1, device=f'cuda:{{{c}.current_device()}}')",
    "{t}.zeros(2, device='cuda')",
    "{t}.zeros(note('size'), device='cuda:1')",
    "{t}.zeros(2, device=f'cuda:{{i}}')",
    "{t}.tensor(1, device='cuda' if {c}.is_available() else 'cpu')",
    "str({t}.device('cuda', i)) if {c}.is_available() else None",
    "f'{{{c}.device_count()}} devices, {{{c}.current_device()!r:>5}}'",
    "[{c}.get_device_name(k) for k in range({c}.device_count())]",
    "{{k: {c}.current_stream(k) for k in range({c}.device_count()) if {c}.is_available()}}",
    "(lambda k=i: {c}.get_rng_state(k))()",
    "(k := {c}.current_device()) + k",
    "x.is_cuda and {c}.synchronize()",
    "{c}.synchronize() if x.device.type == 'cuda' else note('host')",
)
# Statements around an expression ("{v}").
STATEMENTS = (
    "note({v})",
    "y = {v}",
    "note('a'); note({v}); note('b')",
    "for _ in [1, 2]: note({v})",
    "if {c}.is_available():\n    note({v})",
    "if not {c}.is_available():\n    return\nnote({v})",
    "with {c}.device(1):\n    note({v})",
    "with {c}.device(1), {c}.stream({c}.Stream()):\n    note({v})",
    "with {c}.stream({c}.current_stream()) as s:\n    note({v})",
    "try:\n    note({v})\nfinally:\n    note('done')",
    "def inner(i=i):\n    note({v})\ninner(1)",
    "def inner(torch, cuda, tc, T):\n    note({v})\ninner(0, 0, 0, 0)",
    "class Inner:\n    def m(self, i):\n        return {v}\nnote(Inner().m(1))",
    "class Inner:\n    y = {v}\nnote(Inner.y)",
    "devicekit = 'mine'\nnote(devicekit, {v})",
    "def inner(devicekit):\n    return {v}\nnote(inner(3))",
    "note([{v} for devicekit in [1]])",
    "def inner():\n    yield {v}\nnote(list(inner()))",
    "def inner(seen={v}):\n    return seen\nnote(inner())",
    "global LATER\nLATER = {v}\nnote(LATER)",
    "import torch\nimport torch.cuda\nnote({v})",
    "from torch import cuda as other\nnote(other.current_device(), {v})",
    "assert {c}.is_available()\nnote({v})",
    "match i:\n    case 1 if {c}.is_available():\n        note({v})",
    "while {c}.is_available():\n    note({v})\n    break",
    "if {c}.device_count() > 1 and {c}.is_available():\n    note({v})\nelse:\n    note('none')",
)


def program(draw: random.Random, functions: int) -> str:
    lines, module, torch = draw.choice(IMPORTS)
    parts = [draw.choice(HEADS), lines, "\n", draw.choice(MIDDLES).replace("{c}", module), "\n"]
    for number in range(functions):
        value = draw.choice(VALUES).format(c=module, t=torch)
        if draw.random() < 0.3:
            value = f"({value}, {draw.choice(VALUES).format(c=module, t=torch)})"
        body = draw.choice(STATEMENTS).replace("{v}", value).replace("{c}", module)
        head = "async def" if draw.random() < 0.1 else "def"
        inside = "\n".join(f"    {line}" for line in body.split("\n"))
        parts.append(f"\n{head} f{number}(x, i):\n{inside}\n")
    return "".join(parts)


def outcomes(code: str, devices: int, current: int, functions: int) -> tuple[list[object], bool]:
    """What a module and its functions left behind, and whether importing it opened a device."""
    machine = Machine(devices=devices, current=current)
    told = machine.run(code, [f"perform(f{number}, TENSOR, 1)" for number in range(functions)])
    return told, machine.opened_by_import


SEEDS = [drawn_seed("SAME_SEED") * 1000 + one for one in range(64)]


@pytest.mark.parametrize(
    "seed", [*SEEDS[:4], *(pytest.param(one, marks=pytest.mark.thorough) for one in SEEDS[4:])]
)
def test_a_rewritten_program_asks_the_same_of_the_machine(seed: int) -> None:
    draw = random.Random(seed)
    rewritten = 0
    for _ in range(8):
        functions = draw.randint(1, 4)
        before = program(draw, functions)
        ast.parse(before)
        after = fixed(before)
        rewritten += after != before
        assert fixed(after) == after, f"rewritten again:\n{after}"
        for devices, current in ((2, 0), (2, 1), (0, 0)):
            was, opened = outcomes(before, devices, current, functions)
            now, opens = outcomes(after, devices, current, functions)
            assert opened or not opens, f"opens a device while it is imported:\n{after}"
            # Where the vendor's module says that there is no device, the old program did not run.
            for old, new in zip(was, now, strict=True):
                assert old in (None, new), f"on {devices} devices:\n{before}\n-- after:\n{after}"
        everything = fixed(before, unsafe=True)
        ast.parse(everything)
        assert fixed(everything, unsafe=True) == everything
    assert rewritten > 3


# What reads as a call like any other, and is another vendor's, the object's own, or a setting.
UNCERTAIN = {
    "a class that is a vendor's": "class MPSThings:\n    def devices(self): return [torch.device('mps', 0)]",
    "a part of what TorchScript reads":
        "class M(torch.nn.Module):\n    def f(self): return torch.jit.fork(pick)\n"
        "def pick(): return torch.cuda.current_device()",
    "a device that is not chosen by itself": "def f(x): torch.mps.synchronize(); return x.to('hpu')",
    "a device that is not chosen, by another name":
        "from torch import mps as m\ndef f(): m.synchronize()  # mps",
    "a function that is a vendor's": "def num_cuda_devices(): return torch.cuda.device_count()",
    "an object that moves itself": "class P:\n    def to(self, d): return self.cuda()",
    "a class of its own": "class P:\n    def cuda(self): pass\ndef f(): P().cuda()",
    "a base that may be anybody's": "class P(Base):\n    def f(self): return self.cuda()",
    "a setting of a type": "def f(): return torch.autocast('cuda', enabled=False)",
    "a setting by keyword": "def f():\n    with torch.amp.autocast(device_type='cuda'): pass",
    "a scaler": "def f(): return torch.amp.GradScaler('cuda')",
    "a vendor's own autocast": "def f():\n    with torch.cuda.amp.autocast(): pass",
    "a context that is handed on": "def f(i): return capability(torch.cuda.device(i))",
    "what another vendor does otherwise":
        "def f(d):\n    if d.type == 'mps': return torch.mps.driver_allocated_memory()\n"
        "    else: return cuda_bytes(d)",
    "another vendor's branch below":
        "def f():\n    if torch.cuda.is_available(): x = 1; torch.cuda.synchronize()\n"
        "    elif is_torch_npu_available(): x = 2",
    "a row of questions with other answers":
        "def f():\n    if torch.cuda.is_available(): n = 1; torch.cuda.synchronize()\n"
        "    if torch.xpu.is_available(): n = 2; torch.xpu.synchronize()",
    "a question between others":
        "def f():\n    if torch.cuda.is_available(): return torch.cuda.get_device_name()\n"
        "    elif torch.backends.mps.is_available(): return 'MPS'\n"
        "    elif torch.xpu.is_available(): return torch.xpu.get_device_name()",
}  # fmt: skip


@pytest.mark.parametrize("code", UNCERTAIN.values(), ids=UNCERTAIN)
def test_what_may_mean_another_device_is_left_to_a_person(code: str) -> None:
    text = f"import torch\n\n{code}\n"
    kept = [line for line in text.splitlines() if "is_available" in line or "cuda" in line or "mps" in line]
    after = fixed(text)
    if "def f" in code and "is_available" in code:
        assert "accelerator_available" not in after
    elif "d.type" in code:
        assert "d.type == 'mps'" in after
    else:
        assert all(line in after for line in kept)


def test_questions_for_several_vendors_are_one_where_all_do_the_same() -> None:
    before = "import torch\n\ndef f():\n" + "".join(
        f"    {word} torch.{vendor}.is_available(): torch.{vendor}.synchronize()\n"
        for word, vendor in (("if", "cuda"), ("elif", "xpu"), ("elif", "npu"))
    )
    assert (
        fixed(before).count("devicekit.accelerator_available(): devicekit.current_device().synchronize()")
        == 3
    )
