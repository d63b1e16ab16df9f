"""Each rule of the audit, on code that breaks it and on code that only looks like it."""

from __future__ import annotations

import pytest

from devicekit.devtools.audit import RULES, findings_in

BROKEN = {
    "DK001": [
        "torch.cuda.synchronize()",
        "torch.npu.Stream",
        "import torch.xpu",
        "from torch.cuda import Event",
        "from torch import musa",
        "from torch.backends import cudnn",
        "torch.backends.mps.is_available()",
        "getattr(torch, 'cuda')",
        "with torch.cuda.stream(s): pass",
    ],
    "DK002": [
        "torch.zeros(2, device='cuda')",
        "torch.device('npu:1')",
        "f'xpu:{rank}'",
        "def load(device='cuda'): pass",
        "KNOWN = {'musa': 1}",
    ],
    "DK003": [
        "tensor.cuda()",
        "model.npu(1)",
        "tensor.to('cuda')",
        "t.to(device=f'cuda:{i}')",
        "x.y().xpu()",
    ],
    "DK004": [
        "if tensor.is_cuda: pass",
        "if x.device.type == 'npu': pass",
        "if device in ('cuda', 'cpu'): pass",
        "if torch.device('cuda') == d: pass",
        "if _is_npu: pass",
        "is_xpu_available()",
        "device.startswith('cuda')",
        "torch.version.hip",
        "match kind:\n  case 'cuda': pass",
    ],
    "DK005": ["init_process_group('nccl')", "backend = 'hccl'"],
    "DK006": ["os.environ['CUDA_VISIBLE_DEVICES']", "ENV = 'ASCEND_RT_VISIBLE_DEVICES'"],
    "DK007": [
        "import torch_npu",
        "import pynvml as nv",
        "from torch_musa.core import x",
        "torch_npu.npu.empty_cache()",
    ],
}

SOUND = [
    '"""Runs on cuda."""',
    'def f():\n    """cuda"""',
    "device.synchronize()",
    "torch.zeros(2, device=device.torch_device)",
    "tensor.to(device.torch_device)",
    "torch.device('cpu')",
    "if device.type == 'cpu': pass",
    "print('install the cuda toolkit')",
    "cuda = 1",
    "settings.cuda",
    "from .cuda import kernels",
    "torch.accelerator.synchronize()",
    "# torch.cuda.synchronize()",
    "self.is_capturing()",
    "f'{device}:{index}'",
    "torch.version.debug",
]


@pytest.mark.parametrize(("rule", "code"), [(rule, code) for rule, codes in BROKEN.items() for code in codes])
def test_a_rule_finds_its_fault_once(rule: str, code: str) -> None:
    assert [(one.rule, one.line) for one in findings_in(code, "x.py")] == [(rule, 1 + code.count("\n"))]


@pytest.mark.parametrize("code", SOUND)
def test_sound_code_is_left_alone(code: str) -> None:
    assert findings_in(code, "x.py") == []


def test_every_rule_is_tested_and_says_what_to_write_instead() -> None:
    assert set(RULES) == {"DK000", *BROKEN}
    assert all(rule.instead for rule in RULES.values())


def test_a_finding_points_at_its_place() -> None:
    (found,) = findings_in("def f(x):\n    return x + torch.cuda.memory_allocated()  # why\n", "a/b.py")
    assert (found.path, found.line, found.column) == ("a/b.py", 2, 16)
    assert found.what == "torch.cuda.memory_allocated"
    assert found.source == "return x + torch.cuda.memory_allocated()  # why"


@pytest.mark.parametrize("code", ["def f(:", "x = '\0'"])
def test_what_cannot_be_parsed_is_a_finding_and_no_pass(code: str) -> None:
    assert [one.rule for one in findings_in(code, "x.py")] == ["DK000"]
