"""The fixer: pairs of code before and after, and code that must stay as it is."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from devicekit.cli import main
from devicekit.contract.errors import ConfigurationError
from devicekit.devtools.audit import mend
from devicekit.devtools.audit.rewrite import rewrite
from devicekit.devtools.audit.rules import analyse

HERE = "devicekit.current_device()"


def fixed(code: str, *, unsafe: bool = False, device_name: str | None = None) -> str:
    edits = [one for one in analyse(code, "x.py", device_name).edits if one.safe or unsafe]
    return rewrite(code, edits)[0]


def inside(body: str) -> str:
    """Statements in a function of a file that has torch."""
    lines = "".join(f"    {line}\n" for line in body.split("\n"))
    return f"import torch\n\nZERO = torch.zeros(1)\n\ndef f(x, s, i, rank):\n{lines}"


# One line of a function, and the line that takes its place ("@" stands for the current device).
LINES = {
    "torch.cuda.synchronize()": "@.synchronize()",
    "torch.cuda.synchronize( )  # wait": "@.synchronize()  # wait",
    "torch.npu.synchronize(i)": "devicekit.device_for(i).synchronize()",
    "torch.cuda.synchronize(device=x.device)": "devicekit.device_for(x.device).synchronize()",
    "torch.cuda.synchronize(None)": "@.synchronize()",
    "torch.cuda.synchronize('cuda')": "@.synchronize()",
    "torch.cuda.synchronize('cuda:1')": "devicekit.device_for(1).synchronize()",
    "torch.cuda.synchronize(torch.cuda.current_device())": "@.synchronize()",
    "torch.xpu.empty_cache()": "@.release_cache()",
    "free, total = torch.cuda.mem_get_info()": "free, total = @.memory_info().free_and_total",
    "y = torch.cuda.mem_get_info(i)[0]": "y = devicekit.device_for(i).memory_info().free",
    "y = torch.cuda.mem_get_info()[1] // 2": "y = @.memory_info().total // 2",
    "y = torch.cuda.memory_stats()['allocated_bytes.all.peak']": "y = @.memory_stats().peak_allocated",
    "y = torch.cuda.memory_stats()['oversize_allocations.current']":
        "y = @.memory_stats().raw['oversize_allocations.current']",
    "y = torch.cuda.memory_stats().get('x', 0)": "y = @.memory_stats().raw.get('x', 0)",
    "y = torch.cuda.random.get_rng_state()": "y = @.get_rng_state()",
    "y = torch.cuda.get_device_properties(i).total_memory":
        "y = devicekit.device_for(i).properties().total_memory",
    "y = torch.cuda.get_device_properties(x.device).multi_processor_count":
        "y = devicekit.device_for(x.device).properties().compute_units",
    "y = torch.cuda.get_device_name()": "y = @.properties().name",
    "y = torch.cuda.Event()": "y = @.create_event()",
    "y = torch.cuda.Event(enable_timing=True, blocking=False)": "y = @.create_event(timing=True)",
    "y = torch.cuda.Event(True)": "y = @.create_event(timing=True)",
    "y = torch.cuda.Stream(priority=-1)": "y = @.create_stream(-1)",
    "y = torch.cuda.Stream(device=i)": "y = devicekit.device_for(i).create_stream()",
    "with torch.cuda.stream(s): pass": "with @.use_stream(s): pass",
    "with torch.cuda.stream(None): pass": "with @.use_stream(None): pass",
    "with torch.cuda.device(i): pass": "with devicekit.device_for(i).current(): pass",
    "torch.cuda.current_stream().wait_stream(s)": "@.current_stream().wait_stream(s)",
    "if torch.cuda.is_current_stream_capturing(): pass": "if @.is_capturing(): pass",
    "y = x.cuda()": "y = x.to(@.torch_device)",
    "y = (x + 1).cuda(non_blocking=True)": "y = (x + 1).to(@.torch_device, non_blocking=True)",
    "y = x.cuda(i, True)": "y = x.to(devicekit.device_for(i).torch_device, non_blocking=True)",
    "y = x.to('cuda')": "y = x.to(@.torch_device.type)",
    "y = x.to(torch.half).to(device='npu', non_blocking=True)":
        "y = x.to(torch.half).to(device=@.torch_device.type, non_blocking=True)",
    "y = x.to(f'npu:{torch.npu.current_device()}')": "y = x.to(str(@.torch_device))",
    "y = x.to(f'cuda:{rank}')": "y = x.to(f'{@.torch_device.type}:{rank}')",
    "y = torch.zeros(2, device='cuda')": "y = torch.zeros(2, device=@.torch_device.type)",
    "y = torch.zeros(2, device='cuda:0')": 'y = torch.zeros(2, device=f"{@.torch_device.type}:0")',
    "y = torch.zeros(2, device='cuda:{}'.format(rank))":
        "y = torch.zeros(2, device=f\"{@.torch_device.type}:{{}}\".format(rank))",
    "y = torch.device('cuda:%d' % rank)": "y = torch.device(f\"{@.torch_device.type}:%d\" % rank)",
    "device = 'npu:' + str(rank)": "device = f\"{@.torch_device.type}:\" + str(rank)",
    "y = x.to('cuda:{}'.format(rank), non_blocking=True)":
        "y = x.to(f\"{@.torch_device.type}:{{}}\".format(rank), non_blocking=True)",
    "y = torch.cuda.current_stream().cuda_stream": "y = @.native_handle(@.current_stream())",
    "y = torch.npu.current_stream(i).npu_stream":
        "y = @.native_handle(devicekit.device_for(i).current_stream())",
    "y = torch.device('cuda', i)": "y = torch.device(@.torch_device.type, i)",
    "device = f'cuda:{rank}'": "device = f'{@.torch_device.type}:{rank}'",
    "torch.set_default_device('cuda')": "torch.set_default_device(@.torch_device.type)",
    "torch.distributed.init_process_group('nccl', rank=i)":
        "torch.distributed.init_process_group(@.collective_backend(), rank=i)",
    "torch.distributed.init_process_group(backend='nccl')":
        "torch.distributed.init_process_group(backend=@.collective_backend())",
    "y = torch.cuda.get_rng_state(device=i)": "y = devicekit.device_for(i).get_rng_state()",
    "torch.cuda.set_rng_state(s, i)": "devicekit.device_for(i).set_rng_state(s)",
    "torch.cuda.manual_seed(i)": "@.manual_seed(i)",
    "torch.cuda.set_per_process_memory_fraction(0.5, i)": "devicekit.device_for(i).set_memory_fraction(0.5)",
    "y = torch.cuda.current_device()": "y = @.index",
    "torch.cuda.set_device(rank)": "devicekit.make_current(rank)",
    "torch.cuda.set_device(torch.cuda.device(rank))": "devicekit.make_current(rank)",
    "y = torch.cuda.device_count()": "y = devicekit.accelerator_count()",
    "print(f'{torch.cuda.mem_get_info()[1] / 1e9:.2f} GB')":
        "print(f'{@.memory_info().total / 1e9:.2f} GB')",
    "y = getattr(torch, 'cuda').current_device()": "y = @.index",
    "é = 'ü'; torch.cuda.synchronize()": "é = 'ü'; @.synchronize()",
}  # fmt: skip


@pytest.mark.parametrize(("before", "after"), LINES.items())
def test_a_call_becomes_the_one_that_means_the_same(before: str, after: str) -> None:
    text = fixed(inside(before))
    assert text == inside(after.replace("@", HERE)).replace(
        "import torch\n", "import torch\nimport devicekit\n"
    )
    assert fixed(text, unsafe=True) == text


# Statements whose meaning would change, or might.
UNTOUCHED = {
    "a shadowed name": "def g(torch): torch.cuda.synchronize()",
    "a name bound twice": "torch = x\ntorch.cuda.synchronize()",
    "a module handed on": "register(torch.cuda)",
    "a function handed on": "register(torch.cuda.synchronize)",
    "a class in isinstance": "isinstance(x, torch.cuda.Stream)",
    "a subclass": "class S(torch.cuda.Stream): pass",
    "a default": "def g(device=torch.cuda.current_device(), d='cuda', e=torch.device('cuda')): pass",
    "what a compiler's decorator is given": "@triton.jit(debug=torch.cuda.is_available())\ndef g(): pass",
    "one of several questions": "if torch.cuda.is_available(): return 1\nif torch.xpu.is_available(): return 2",
    "a decorator's argument": "@skip_unless(torch.cuda.is_available())\ndef g(): pass",
    "a lambda's default": "y = lambda d=torch.cuda.current_device(): d",
    "code for a compiler": "@torch.compile\ndef g(): torch.cuda.synchronize()",
    "code for another compiler": "@triton.jit(debug=True)\ndef g(): torch.cuda.synchronize()",
    "a method of that name elsewhere": "Capability.cuda()",
    "a storage": "y = x.untyped_storage().cuda()\nstorage = x.storage()\nz = storage.cuda(i)",
    "a call with other arguments": "build.cuda(version=12)",
    "an event that blocks": "torch.cuda.Event(blocking=True)",
    "an event across processes": "torch.cuda.Event(interprocess=True)",
    "arguments that cannot be told": "torch.cuda.synchronize(*x)\ntorch.cuda.Event(**s)",
    "too many arguments": "torch.cuda.synchronize(i, i)",
    "another device's text": "torch.cuda.synchronize('cpu')",
    "a mock of the test": "with patch('torch.cuda.synchronize'): torch.cuda.synchronize()",
    "a replaced function": "torch.cuda.synchronize = s\ntorch.cuda.synchronize()",
    "a replaced attribute": "monkeypatch.setattr(torch.cuda, 'synchronize', s)\ntorch.cuda.synchronize()",
    "a table": "device = {'cuda': 1, 'npu': 2}['cuda']",
    "a set of names": "devices = ['cuda', 'cpu']",
    "a choice": "add_argument('--device', default=DEFAULT, choices=['cuda', 'cpu'])",
    "text": "print('cuda', device_map='auto')",
    "a docstring": '"""torch.cuda.synchronize()"""',
    "a guard over something else": "if torch.cuda.is_available(): fast()",
    "a guard over a vendor's": "if torch.cuda.is_available(): torch.cuda.nvtx.mark('x')",
    "a guard over a vendor's, asked beside": "if torch.cuda.is_available() and torch.cuda.device_name():\n"
        "    torch.cuda.nvtx.mark('x')",
    "guards of nothing but each other": "if torch.cuda.is_available() and not torch.cuda.is_available(): s(x)",
    "a guard beside one that stays": "if not x.is_cuda and torch.cuda.is_available(): raise ValueError",
    "a guard that something else passes": "if (x.is_cuda and s) or i: x.nvtx(s)",
    "an accelerator that is not chosen": "if torch.cuda.is_available() or torch.mps.is_available(): x.cpu()",
    "a question of two tensors": "if (x.is_cuda and s.is_cuda) or (x.is_xpu and s.is_xpu): x.cpu()",
    "a question and something else": "if torch.cuda.is_available() or torch.xpu.is_available() or s: x.cpu()",
    "an answer that is kept": "y = torch.cuda.is_available()",
    "a tensor's question": "if x.is_cuda: pass",
    "a tensor's question that is kept": "y = x.is_cuda",
    "a comparison": "if x.device.type == 'cuda': pass",
    "mixed collectives": "torch.distributed.init_process_group('cpu:gloo,cuda:nccl')",
    "another's backend": "attention(backend='nccl')",
    "a generation": "y = torch.cuda.get_device_capability() >= (9, 0)",
    "properties as a whole": "y = torch.cuda.get_device_properties(i)",
    "a comment inside": "torch.cuda.set_rng_state(\n    s,  # from before\n    device=i,\n)",
    "a type's name": "x.type('torch.cuda.FloatTensor')",
    "a graph": "y = torch.cuda.CUDAGraph()",
    "an assignment": "torch.cuda.x = 1",
    "a deletion": "del torch.cuda",
    "quotes in a formatted string": "print(f\"{x.to('cuda:0')}\")",
    "its own devicekit": "devicekit = 1",
}  # fmt: skip


@pytest.mark.parametrize("body", UNTOUCHED.values(), ids=UNTOUCHED)
def test_what_is_not_certain_stays(body: str) -> None:
    assert fixed(inside(body)) == inside(body)


@pytest.mark.parametrize(
    "decorator", ["torch.library.custom_op('a::b', mutates_args=())", "torch.compiler.disable", "transcript"]
)
def test_what_a_compiler_calls_as_it_is_is_rewritten(decorator: str) -> None:
    code = f"import torch\n\n@{decorator}\ndef f(x):\n    with torch.cuda.device(x.device): pass\n"
    assert "    with devicekit.device_for(x.device).current(): pass\n" in fixed(code)


def test_what_a_decorator_is_given_is_evaluated_on_import() -> None:
    code = "import pytest, torch\n@pytest.mark.skipif({} < 2, reason='x')\ndef test(): pass\n"
    before, after = code.format("torch.cuda.device_count()"), code.format("devicekit.accelerator_count()")
    assert fixed(before) == before
    assert fixed(before, unsafe=True) == after.replace("pytest, torch", "pytest\nimport devicekit")


@pytest.mark.parametrize(
    ("before", "after"),
    {
        "if device == 'cuda': pass": "if devicekit.on_accelerator(device): pass",
        "if device != 'cuda' and device != 'xpu': pass": "if not devicekit.on_accelerator(device): pass",
        "if s and (x.is_cuda or x.is_npu): pass": "if s and (devicekit.on_accelerator(x)): pass",
        "y = torch.cuda.is_available() or torch.xpu.is_available()": "y = devicekit.accelerator_available()",
        "y = not (hasattr(torch, 'xpu') and torch.xpu.is_available()) and not torch.cuda.is_available()": (
            "y = not devicekit.accelerator_available()"
        ),
        "if s.device != 'npu': pass": "if not devicekit.on_accelerator(s.device): pass",
        "if s.device_type in ('cuda', 'xpu'): pass": "if devicekit.on_accelerator(s.device_type): pass",
        "if str(device).startswith('cuda'): pass": "if devicekit.on_accelerator(device): pass",
        "if torch.device(x).type == 'cuda': pass": "if devicekit.on_accelerator(torch.device(x)): pass",
        "y = ProfilerActivity.CUDA": "y = @.profiler_activity()",
        "y = torch.cuda.can_device_access_peer(i, 1)": "y = devicekit.device_for(i).can_access_peer(1)",
        "y = torch.cuda.graph_pool_handle()": "y = @.graph_pool()",
        "y = torch.backends.mps.is_available()": "y = devicekit.accelerator_available()",
        "y = torch.cuda.memory_allocated() / 2": "y = @.memory_stats().allocated / 2",
        "y = torch.cuda.memory.max_memory_reserved(i)": "y = devicekit.device_for(i).memory_stats().peak_reserved",
        "y = torch.cuda.get_device_properties().gcnArchName[:5]": "y = @.properties().architecture[:5]",
        "y = self.to('cuda')": "y = self.to(@.torch_device.type)",
    }.items(),
)
def test_what_means_more_or_less_than_before_is_written_only_when_asked(before: str, after: str) -> None:
    head = "from torch.profiler import ProfilerActivity\n"
    assert fixed(head + inside(before)) == head + inside(before)
    text = fixed(head + inside(before), unsafe=True)
    assert f"rank):\n    {after.replace('@', HERE)}\n" in text
    assert fixed(text, unsafe=True) == text


@pytest.mark.parametrize(
    "branches",
    [
        ("torch.cuda.is_available()", "torch.xpu.is_available()"),
        ("torch.cuda.is_available()", "torch.backends.mps.is_available()"),
        ("device == 'cuda'", "device == 'npu'"),
        ("device.type == 'cuda'", "device.type != 'xpu'"),
        ("x.is_cuda", "x.is_xpu"),
    ],
)
def test_of_questions_for_several_vendors_none_is_taken_for_all(branches: tuple[str, str]) -> None:
    code = inside("if {}:\n    a()\nelif {}:\n    b()".format(*branches))
    assert fixed(code, unsafe=True) == code
    assert "devicekit" in fixed(inside(f"if {branches[0]}:\n    a()"), unsafe=True)


def test_one_question_for_several_vendors_is_not_taken_where_one_of_them_is_asked_for_too() -> None:
    both = "if torch.cuda.is_available() or torch.xpu.is_available():\n    a()"
    for also in ("torch.xpu.is_available()", "torch.cuda.is_available()"):
        code = inside(f"{both}\nif {also}:\n    b()")
        assert fixed(code, unsafe=True) == code
    assert fixed(inside(f"{both}\n{both}"), unsafe=True).count("devicekit.accelerator_available()") == 2


def test_what_a_rewritten_call_takes_away_is_no_place_for_a_person() -> None:
    found = analyse(inside("y = torch.cuda.get_device_capability('cuda')"), "x.py").findings
    assert [(one.rule, one.fix) for one in found] == [("DK001", "unsafe"), ("DK002", "unsafe")]
    found = analyse(inside("torch.cuda.synchronize(s.is_cuda)"), "x.py").findings
    assert [(one.rule, one.fix) for one in found] == [("DK001", "safe"), ("DK004", "unsafe")]


def test_what_runs_on_import_is_rewritten_only_when_asked() -> None:
    code = "import torch\nSIZE = torch.cuda.mem_get_info()[0]\nclass A:\n    s = torch.cuda.Stream()\n"
    assert fixed(code) == code
    assert fixed(code, unsafe=True).count(HERE) == 2
    main_block = "import torch\nif __name__ == '__main__':\n    torch.cuda.synchronize()\n"
    assert f"    {HERE}.synchronize()" in fixed(main_block)


@pytest.mark.parametrize(
    ("before", "after"),
    [
        (
            "if torch.cuda.is_available(): x.cuda()",
            "if devicekit.accelerator_available(): x.to(@.torch_device)",
        ),
        (
            "device = 'cuda' if torch.cuda.is_available() else 'cpu'",
            "device = @.torch_device.type if devicekit.accelerator_available() else 'cpu'",
        ),
        (
            "if not torch.cuda.is_available(): return\ntorch.cuda.synchronize()",
            "if not devicekit.accelerator_available(): return\n@.synchronize()",
        ),
        (
            "assert torch.cuda.is_available(), 'x'\ntorch.cuda.synchronize()",
            "assert devicekit.accelerator_available(), 'x'\n@.synchronize()",
        ),
        (
            "if not torch.cuda.is_available():\n    pytest.skip('x')\ny = x.cuda()",
            "if not devicekit.accelerator_available():\n    pytest.skip('x')\ny = x.to(@.torch_device)",
        ),
        (
            "if torch.cuda.is_available() and torch.cuda.device_count() > 1: torch.cuda.synchronize()",
            "if devicekit.accelerator_available() and devicekit.accelerator_count() > 1: @.synchronize()",
        ),
        (
            "if torch.cuda.is_available() or torch.xpu.is_available(): x.cuda()",
            "if devicekit.accelerator_available(): x.to(@.torch_device)",
        ),
        (
            "if not torch.cuda.is_available() and not torch.npu.is_available(): return\nx.cuda()",
            "if not devicekit.accelerator_available(): return\nx.to(@.torch_device)",
        ),
        (
            "if torch.cuda.is_available():\n    if torch.cuda.is_available(): torch.cuda.synchronize()",
            "if devicekit.accelerator_available():\n    if devicekit.accelerator_available(): @.synchronize()",
        ),
    ],
)
def test_a_guard_is_rewritten_with_all_that_it_guards(before: str, after: str) -> None:
    assert (
        fixed(inside(before)).partition("rank):\n")[2]
        == inside(after.replace("@", HERE)).partition("rank):\n")[2]
    )


@pytest.mark.parametrize(
    ("question", "instead"),
    [
        ("x.is_cuda", "devicekit.on_accelerator(x)"),
        ("s.weight.is_npu", "devicekit.on_accelerator(s.weight)"),
        ("x[0].is_xpu", "devicekit.on_accelerator(x[0])"),
        ("x.device.type == 'cuda'", "devicekit.on_accelerator(x.device)"),
        ("device.type == 'xpu'", "devicekit.on_accelerator(device)"),
        ("s.device.type in ('cuda', 'xpu')", "devicekit.on_accelerator(s.device)"),
    ],
)
def test_where_a_tensor_is_is_asked_of_any_vendor_only_by_choice(question: str, instead: str) -> None:
    """A tensor can be where devicekit has no backend, as on a Mac, and what follows uses the current device."""
    vendor = next(one for one in ("cuda", "npu", "xpu") if one in question)
    before = inside(f"if {question}:\n    torch.{vendor}.synchronize()")
    for unsafe, asked in ((False, question), (True, instead)):
        text = fixed(before, unsafe=unsafe)
        assert text.endswith(f"    if {asked}:\n        {HERE}.synchronize()\n")
        assert fixed(text, unsafe=unsafe) == text
    kept = f"assert {question}\nkernel(x)"
    assert fixed(inside(kept)) == inside(kept)
    assert f"assert {instead}\n" in fixed(inside(kept), unsafe=True)


@pytest.mark.parametrize(
    ("line", "sure"),
    [
        ("s.device = 'cuda'", False),
        ("s.state.rand_device = f'cuda:{rank}'", False),
        ("expected_device = 'cuda'", False),
        ("check(x, expected_device_type='cuda')", False),
        ("s.device = 'cuda' if torch.cuda.is_available() else 'cpu'", True),
        ("s.device = torch.device('cuda')", False),
        ("s.value = torch.zeros(1, device='cuda')", True),
        ("s.value = s(torch.device('cuda'))", True),
        ("self.device = 'cuda'", True),
        ("x_device: str = 'cuda'", True),
    ],
)
def test_a_word_that_another_object_keeps_may_not_be_there_to_be_used(line: str, sure: bool) -> None:
    assert (HERE in fixed(inside(line))) is sure
    assert HERE in fixed(inside(line), unsafe=True)


@pytest.mark.parametrize(
    ("line", "sure"),
    [
        ("with torch.cuda.device(i): pass", True),
        ("with s(), (torch.cuda.stream(x) if x else nullcontext()): pass", True),
        ("s.enter_context(torch.cuda.device(i))", True),
        ("y = torch.cuda.device(i)", False),
        ("self.y = torch.cuda.stream(s) if s else nullcontext()", False),
        ("return torch.cuda.device(i)", False),
    ],
)
def test_a_context_that_is_kept_may_be_entered_again(line: str, sure: bool) -> None:
    assert ("devicekit." in fixed(inside(line))) is sure
    assert "devicekit." in fixed(inside(line), unsafe=True)


@pytest.mark.parametrize(
    ("line", "sure"),
    [
        ("names = [f'cuda:{i}' for i in range(torch.cuda.device_count())]", False),
        ("y = [x.cuda() for x in s if x.is_cuda]", False),
        ("y = [x.to(f'cuda:{i}') for i in range(torch.cuda.device_count())]", True),
    ],
)
def test_of_a_comprehension_all_is_rewritten_or_nothing(line: str, sure: bool) -> None:
    code = inside(line)
    assert (fixed(code) == code) is not sure
    assert "devicekit." in fixed(code, unsafe=True)


@pytest.mark.parametrize(
    ("branch", "asked"),
    [
        ("if device.startswith('cuda'):\n    if {}: torch.cuda.synchronize()", "torch.cuda.is_available()"),
        ("if device == 'cuda':\n    device = {}", "'cuda:0'"),
        ("if i:\n    s()\nelif is_npu():\n    device = {}", "f'npu:{rank}'"),
    ],
)
def test_a_branch_for_one_vendor_that_stays_asks_for_that_vendor(branch: str, asked: str) -> None:
    code = inside(branch.format(asked))
    assert asked in fixed(code)
    assert asked not in fixed(code, unsafe=True)
    alone = branch.rpartition("\n")[2].strip().format(asked)
    assert asked not in fixed(inside(alone))


TRIES = (
    "x.cuda()",
    "torch.cuda.synchronize()",
    "y = torch.zeros(1, device='cuda')",
    "y = torch.cuda.Event()",
)


@pytest.mark.parametrize("line", TRIES)
@pytest.mark.parametrize(
    ("around", "kept"),
    [
        ("try:\n    {}\nexcept Exception:\n    pass", True),
        ("try:\n    {}\nexcept:\n    i = 1", True),
        ("try:\n    {}\nexcept (KeyError, AssertionError) as e:\n    print(e)\n    return None", True),
        ("try:\n    s()\n    with i:\n        {}\nexcept RuntimeError:\n    raise ValueError('x')", True),
        ("with pytest.raises(RuntimeError):\n    {}", True),
        ("with self.assertRaisesRegex(RuntimeError, 'x'):\n    {}", True),
        ("with contextlib.suppress(AttributeError):\n    {}", True),
        ("try:\n    {}\nexcept torch.OutOfMemoryError:\n    pass", False),
        ("try:\n    {}\nexcept Exception:\n    s()\n    raise", False),
        ("try:\n    {}\nfinally:\n    s()", False),
        ("try:\n    s()\nexcept Exception:\n    {}", False),
        ("try:\n    s()\nexcept Exception:\n    pass\nelse:\n    {}", False),
        ("try:\n    def g():\n        {}\nexcept Exception:\n    pass", False),
    ],
)
def test_where_an_error_is_caught_a_device_may_be_missing(line: str, around: str, kept: bool) -> None:
    """torch raises without such a device, and devicekit goes on with another, or raises something else."""
    code = inside(around.format(line))
    assert (fixed(code) == code) is kept
    assert HERE in fixed(code, unsafe=True)


@pytest.mark.parametrize(
    "question",
    [
        "current_platform.is_cuda()",
        "s.platform.is_cuda",
        "self.is_cuda",
        "Platform.is_cuda",
        "x.device.type in ('cuda', 'cpu')",
        "s.type == 'cuda'",
        "x.device.type == 'cuda:0'",
    ],
)
def test_what_asks_for_something_else_stays(question: str) -> None:
    text = fixed(inside(f"if {question}:\n    torch.cuda.synchronize()"), unsafe=True)
    assert f"    if {question}:\n        {HERE}.synchronize()" in text


def test_another_place_than_a_vendors_is_asked_for_only_by_choice() -> None:
    before = inside("if x.device.type != 'cuda':\n    y = s.cuda()")
    assert "if x.device.type != 'cuda':" in fixed(before)
    assert "if not devicekit.on_accelerator(x.device):" in fixed(before, unsafe=True)


def test_a_guard_over_something_that_stays_is_not_certain() -> None:
    text = fixed(inside("if torch.cuda.is_available():\n    x.cuda()\n    import pynvml"))
    assert "if torch.cuda.is_available():" in text
    assert "x.to(" in text


def test_below_another_current_device_the_current_one_is_asked_for() -> None:
    code = "import torch\n\nA = torch\ndef f(device, i):\n    with torch.cuda.device(i):\n"
    code += "        torch.cuda.synchronize()\n"
    lines = fixed(f"{code}    torch.cuda.synchronize()\n", device_name="device").splitlines()
    assert lines[5:] == [
        "    with devicekit.device_for(i).current():",
        f"        {HERE}.synchronize()",
        "    device.synchronize()",
    ]


NAMED = {
    "def f(device): torch.cuda.synchronize()": True,
    "def f(device=None): torch.cuda.synchronize()": True,
    "def f(device: devicekit.Device): torch.cuda.synchronize()": True,
    "def f(device: str): torch.cuda.synchronize()": False,
    "def f(device: torch.device): torch.cuda.synchronize()": False,
    "def f(device='cuda'): torch.cuda.synchronize()": False,
    "def f():\n    device = 1\n    torch.cuda.synchronize()": False,
    "def f(device):\n    device = device or 1\n    torch.cuda.synchronize()": False,
    "def f(): torch.cuda.synchronize()": False,
    "from engine import device\ndef f(): torch.cuda.synchronize()": True,
    "class device: pass\nclass A:\n    device = 1\n    def f(self): torch.cuda.synchronize()": True,
}


@pytest.mark.parametrize(("code", "used"), NAMED.items())
def test_a_named_device_is_used_only_where_it_can_be_one(code: str, used: bool) -> None:
    text = fixed(f"import devicekit\nimport torch\n{code}\n", device_name="device")
    assert ("device.synchronize()" in text.replace(HERE, "")) is used
    assert (f"{HERE}.synchronize()" in text) is not used


def test_a_device_may_be_an_attribute_an_import_or_the_files_own() -> None:
    method = "import torch\nclass A:\n    def f(self): torch.cuda.synchronize()\n"
    assert "self.device.synchronize()" in fixed(method, device_name="self.device")
    imported = fixed(method, device_name="engine.parts:device")
    assert "from engine.parts import device\n" in imported
    assert "def f(self): device.synchronize()" in imported
    taken = "import torch\ndevice = 1\nclass A:\n    def f(self): torch.cuda.synchronize()\n"
    assert f"{HERE}.synchronize()" in fixed(taken, device_name="engine.parts:device")
    own = "import devicekit, torch\nGPU = devicekit.get_device()\ndef f(): torch.cuda.synchronize()\n"
    assert "GPU.synchronize()" in fixed(own)
    parameter = "import devicekit, torch\ndef f(d: devicekit.Device): torch.cuda.synchronize()\n"
    assert "d.synchronize()" in fixed(parameter)


@pytest.mark.parametrize(
    ("path", "body", "apart"),
    [
        ("devices/musa/from_pointer.py", "def f(): torch.musa.synchronize()", True),
        ("connectors/NPUConnector.py", "def f(s: torch.npu.Stream): return torch.device('npu')", True),
        ("x.py", "class PagedMemMUSAConnectorV2:\n    def f(self): torch.musa.synchronize()", True),
        ("x.py", "def peak_xpu_memory(s: torch.xpu.Stream): return torch.xpu.mem_get_info()", True),
        ("x.py", "def f():\n    def on_hpu0(): torch.cuda.synchronize()", True),
        (
            "cuda_graph_runner.py",
            "class CudaRunner:\n    def get_cuda(self): torch.cuda.synchronize()",
            False,
        ),
        ("inputs/chips.py", "class XLargeInput:\n    def mpstat(self): torch.cuda.synchronize()", False),
    ],
)
def test_code_for_one_vendor_beside_others_stays_that_vendors(path: str, body: str, apart: bool) -> None:
    edits = analyse(f"import torch\n{body}\n", path).edits
    assert edits
    assert any(one.safe for one in edits) is not apart


def test_what_is_said_to_be_a_type_is_one_everywhere() -> None:
    code = (
        "import torch\nfrom typing import cast\n\ndef f(s) -> torch.cuda.Stream:\n"
        "    return cast(torch.cuda.Stream, s)\n"
    )
    assert fixed(code) == (
        "from typing import cast\nimport devicekit\n\ndef f(s) -> devicekit.Stream:\n"
        "    return cast(devicekit.Stream, s)\n"
    )


def test_annotations_and_exceptions_are_torch_and_devicekit_types() -> None:
    code = (
        "import torch as T\n\ndef f(s: T.cuda.Stream | None) -> list[T.cuda.Event]:\n    try: pass\n"
        "    except (T.cuda.OutOfMemoryError, ValueError): raise\n"
    )
    assert fixed(code) == (
        "import torch as T\nimport devicekit\n\ndef f(s: devicekit.Stream | None) -> list[devicekit.Event]:\n"
        "    try: pass\n    except (T.OutOfMemoryError, ValueError): raise\n"
    )


def test_imports_that_nothing_uses_any_more_go_and_others_stay() -> None:
    code = (
        '"""Doc."""\n\nfrom __future__ import annotations\n\nimport torch.cuda as tc\nimport torch.cuda\n'
        "from torch.cuda import Event, nvtx\nfrom torch import cuda\n\n\n"
        "def f():\n    tc.synchronize()\n    cuda.synchronize()\n    nvtx.mark('x')\n    return Event()\n"
    )
    text = fixed(code)
    assert text.startswith('"""Doc."""\n\nfrom __future__ import annotations\n')
    assert "import torch.cuda\n" in text
    assert "from torch.cuda import nvtx\n" in text
    assert "as tc" not in text
    assert "import cuda\n" not in text
    assert text.count("import devicekit") == 1


def test_an_import_inside_of_a_function_is_nobody_elses() -> None:
    code = "import torch\n\ndef g():\n    import devicekit\n\ndef f():\n    torch.cuda.synchronize()\n"
    assert fixed(code).startswith("import devicekit\n\ndef g():\n    import devicekit\n")
    bare = "def f():\n    import torch\n    torch.cuda.synchronize()\n"
    assert fixed(bare).startswith("import devicekit\n")


def test_formatting_is_kept_to_the_last_blank() -> None:
    code = (
        "import torch\r\n\r\nA=torch\r\n"
        "def f( x ):\r\n\tx = ( x . a ( )\r\n\t\t.cuda()  # moved\r\n\t\t. b( ) ) ; y=1\r\n"
        "\ttorch.cuda.synchronize() # done\r\n\r\n\r\n#end"
    )
    text = fixed(code)
    assert (
        text.replace(f".to({HERE}.torch_device)", ".cuda()")
        .replace(f"{HERE}.synchronize()", "torch.cuda.synchronize()")
        .replace("import devicekit\r\n", "")
        == code
    )


def test_files_are_written_in_their_encoding_with_their_mode_and_only_if_they_change(tmp_path: Path) -> None:
    latin = tmp_path / "latin.py"
    latin.write_bytes(
        "# coding: latin-1\nimport torch\ndef f():\n    torch.cuda.synchronize()  # \xe4\n".encode("latin-1")
    )
    latin.chmod(0o750)
    (tmp_path / "link.py").symlink_to(latin)
    bom = tmp_path / "bom.py"
    bom.write_bytes(b"\xef\xbb\xbfimport torch\ndef f():\n    torch.cuda.synchronize()\n")
    sound = tmp_path / "sound.py"
    sound.write_text("x = 1\n")
    before = sound.stat()
    done = mend([tmp_path])
    assert (done.files, done.edits, done.left) == (2, 2, [])
    assert b"synchronize()  # \xe4" in latin.read_bytes()
    assert latin.stat().st_mode & 0o777 == 0o750
    assert (tmp_path / "link.py").is_symlink()
    assert bom.read_bytes().startswith(b"\xef\xbb\xbfimport devicekit\n")
    assert sound.stat().st_mtime_ns == before.st_mtime_ns
    assert mend([tmp_path]).files == 0
    assert sorted(one.name for one in tmp_path.iterdir()) == ["bom.py", "latin.py", "link.py", "sound.py"]


def test_waived_lines_are_left_alone(tmp_path: Path) -> None:
    code = "import torch\ndef f():\n    torch.cuda.synchronize()  # devicekit: allow[DK001] a profiler\n"
    (tmp_path / "a.py").write_text(code)
    done = mend([tmp_path])
    assert (done.edits, done.left, done.exit_status) == (0, [], 0)
    assert (tmp_path / "a.py").read_text() == code


def test_the_command_shows_rewrites_and_says_what_changes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "a.py"
    path.write_text("import torch\ndef f(x):\n    return torch.cuda.get_device_name()\n")
    assert main(["audit", "--diff", str(path)]) == 1
    shown = capsys.readouterr().out
    assert f"-    return torch.cuda.get_device_name()\n+    return {HERE}.properties().name\n" in shown
    assert "torch.cuda.get_device_name" in path.read_text()
    assert main(["audit", "--fix", str(path)]) == 0
    told = capsys.readouterr().out
    assert "torch.cuda.get_device_name: None where the vendor does not say" in told
    assert told.endswith("1 place rewritten in 1 file; 0 left to do by hand\n")
    assert main(["audit", "--diff", str(path)]) == 0
    path.write_text("import torch\ntorch.cuda.synchronize()\n")
    assert main(["audit", "--fix", str(path)]) == 1
    assert main(["audit", "--unsafe-fixes", str(path)]) == 0


@pytest.mark.parametrize("name", ["", "a b", "self.", "1x", "x()", ":device", "a:b:c", "a-b:device", "class"])
def test_a_device_name_that_is_none_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigurationError, match="names no device"):
        mend([tmp_path], device_name=name)


def test_every_new_line_of_the_pairs_is_code() -> None:
    for after in LINES.values():
        ast.parse(inside(after.replace("@", HERE)))


def test_torch_is_imported_no_longer_than_it_is_used() -> None:
    assert fixed("import torch\n\ndef f(): torch.cuda.synchronize()\n").startswith(
        "import devicekit\n\ndef f"
    )
    assert "import torch as T" not in fixed("import torch as T\n\ndef f(): T.cuda.synchronize()\n")
    for kept in (
        "import torch\n\ndef f(): return torch.cuda.device_count(), torch.zeros(1)\n",
        "import torch\n\n__all__ = ['torch']\ndef f(): torch.cuda.synchronize()\n",
        "import torch  # for others\nfrom torch.cuda import synchronize\ndef f(): synchronize()\n",
        "import torch\nimport torch.nn\n\ndef f(): return torch.cuda.device_count(), torch.nn.Module\n",
    ):
        text = fixed(kept)
        assert "devicekit" in text
        assert "import torch" in text
