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
        "getattr(torch, 'cuda').synchronize()",
        "getattr(torch, 'npu', None)",
        "x.type('torch.cuda.FloatTensor')",
        "patch('torch.cuda.is_available')",
        "torch.cuda.FloatTensor",
        "torch.get_device_module('cuda').synchronize()",
        "print(f'{torch.cuda.memory_allocated()}')",
        "launch(stream.cuda_stream)",
        "launch(device.current_stream().npu_stream)",
        "queue = self.copy_stream.sycl_queue",
        "done_event.cuda_event",
        "torch.profiler.ProfilerActivity.CUDA",
    ],
    "DK002": [
        "torch.zeros(2, device='cuda')",
        "torch.device('npu:1')",
        "f'xpu:{rank}'",
        "def load(device='cuda'): pass",
        "KNOWN = {'musa': 1}",
        "'cuda:{}'.format(rank)",
        "'npu:%d' % rank",
        "'xpu:' + str(rank)",
        "torch.device('cuda:{}'.format(rank))",
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
        "is_torch_npu_available()",
        "if device == 'cuda:{}'.format(0): pass",
        "device.startswith('cuda')",
        "torch.version.hip",
        "match kind:\n  case 'cuda': pass",
    ],
    "DK005": ["init_process_group('nccl')", "backend = 'hccl'", "init('cpu:gloo,cuda:nccl')"],
    "DK006": ["os.environ['CUDA_VISIBLE_DEVICES']", "ENV = 'ASCEND_RT_VISIBLE_DEVICES'"],
    "DK007": [
        "import torch_npu",
        "import pynvml as nv",
        "from torch_musa.core import x",
        "torch_npu.npu.empty_cache()",
    ],
    "DK010": [
        "os.environ['NCCL_DEBUG'] = 'INFO'",
        "os.environ.setdefault('HCCL_CONNECT_TIMEOUT', '1')",
        "os.getenv('CUDA_HOME')",
        "'ROCM_HOME' in os.environ",
        "monkeypatch.setenv('TORCH_NCCL_AVOID_RECORD_STREAMS', '1')",
    ],
    "DK008": ["os.environ['PYTORCH_CUDA_ALLOC_CONF'] = ''", "NAME = 'PYTORCH_NPU_ALLOC_CONF'"],
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
    "self.cuda_stream",
    "stream.cuda_stream = None",
    "settings.cuda_event",
    "torch.profiler.ProfilerActivity.CPU",
    "KINDS = ('CUDA_GRAPH', 'NCCL_PORT')",
    "os.environ['HOME']",
    "'{}:{}'.format(device, rank)",
    "def f(torch): torch.cuda.synchronize()",
    "class torch:\n    cuda = 1\ntorch.cuda",
    "class Plan:\n    @classmethod\n    def cuda(cls, min_sm): ...\nPlan.cuda(min_sm=(9, 0))",
    "for torch in engines: torch.cuda.start()",
    "from mine import torch\ntorch.cuda.synchronize()",
    "os.environ['PYTORCH_ALLOC_CONF']",
]

ALIASES = [
    "import torch as T\nT.cuda.synchronize()",
    "import torch.cuda as tc\ntc.synchronize()",
    "from torch import cuda\ncuda.synchronize()",
    "from torch import cuda as c\nc.synchronize()",
    "from torch.cuda import synchronize\nsynchronize()",
    "import torch\ncuda = torch.cuda\ncuda.synchronize()",
    "import torch\ncuda: object = torch.cuda\ndef f(): cuda.synchronize()",
    "import torch\na = b = torch.cuda\nb.synchronize()",
    "import torch\ndef f():\n    wait = torch.cuda.synchronize\n    wait()",
    "import torch\nm = getattr(torch, 'cuda')\nm.synchronize()",
    "import torch\ngetattr(torch.cuda, 'synchronize')()",
    "import importlib\nm = importlib.import_module('torch.cuda')\nm.synchronize()",
    "try:\n    import torch\nexcept ImportError:\n    torch = None\ntorch.cuda.synchronize()",
    "def f():\n    import torch\n    torch.cuda.synchronize()",
    "import torch\nclass A:\n    torch = 1\n    def f(self): torch.cuda.synchronize()",
    "import torch\n[torch.cuda.synchronize() for x in y]",
    "def f():\n    global T\n    import torch as T\ndef g():\n    T.cuda.synchronize()",
    "import torch\nif (t := torch.cuda.synchronize()): pass",
]


@pytest.mark.parametrize("code", ALIASES)
def test_a_vendor_module_is_found_by_whatever_name_it_goes(code: str) -> None:
    last = 1 + code.count("\n")
    found = findings_in(code, "x.py")
    assert {one.what for one in found if one.line == last} >= {"torch.cuda.synchronize"}
    assert sum(one.line == last for one in found) == 1


@pytest.mark.parametrize(
    ("value", "uses"),
    [
        ("torch.backends.cudnn.benchmark", "restore(value)"),
        ("torch.backends.cuda.matmul.allow_tf32", "state.allow_tf32 = value"),
        ("torch.version.hip", "if value: use(value.split('.'))"),
    ],
)
def test_a_name_for_a_value_names_no_vendor(value: str, uses: str) -> None:
    found = findings_in(f"import torch\nvalue = {value}\n{uses}", "x.py")
    assert [(one.line, one.what) for one in found] == [(2, value)]


@pytest.mark.parametrize(("rule", "code"), [(rule, code) for rule, codes in BROKEN.items() for code in codes])
def test_a_rule_finds_its_fault_once(rule: str, code: str) -> None:
    assert [(one.rule, one.line) for one in findings_in(code, "x.py")] == [(rule, 1 + code.count("\n"))]


@pytest.mark.parametrize("code", SOUND)
def test_sound_code_is_left_alone(code: str) -> None:
    assert findings_in(code, "x.py") == []


def test_every_rule_is_tested_and_says_what_to_write_instead() -> None:
    assert set(RULES) == {"DK000", "DK009", *BROKEN}
    assert all(rule.instead for rule in RULES.values())


def test_a_finding_points_at_its_place() -> None:
    (found,) = findings_in("def f(x):\n    return x + torch.cuda.memory_allocated()  # why\n", "a/b.py")
    assert (found.path, found.line, found.column) == ("a/b.py", 2, 16)
    assert found.what == "torch.cuda.memory_allocated"
    assert found.source == "return x + torch.cuda.memory_allocated()  # why"


@pytest.mark.parametrize("code", ["def f(:", "x = '\0'"])
def test_what_cannot_be_parsed_is_a_finding_and_no_pass(code: str) -> None:
    assert [one.rule for one in findings_in(code, "x.py")] == ["DK000"]
