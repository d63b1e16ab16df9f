"""What `--fix` leaves to a person, who may choose it by `--unsafe-fixes`, and when a question is certain."""

from __future__ import annotations

import pytest

from devicekit.devtools.audit.rules import analyse
from tests.devtools.audit.fixing import HERE, fixed, inside


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


@pytest.mark.parametrize(
    ("path", "body", "apart"),
    [
        ("devices/musa/from_pointer.py", "def f(): torch.musa.synchronize()", True),
        ("connectors/NPUConnector.py", "def f(s: torch.npu.Stream): return torch.device('npu')", True),
        ("x.py", "class PagedMemMUSAConnectorV2:\n    def f(self): torch.musa.synchronize()", True),
        ("x.py", "def peak_xpu_memory(s: torch.xpu.Stream): return torch.xpu.mem_get_info()", True),
        ("x.py", "def f():\n    def on_hpu0(): torch.cuda.synchronize()", True),
        ("x.py", "def f(): return Row('xpu', count=lambda: torch.xpu.device_count())", True),
        ("x.py", "def f(): return Row('cuda', count=lambda: torch.cuda.device_count())", False),
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
