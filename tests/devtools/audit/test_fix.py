"""The fixer: pairs of code before and after, and code that must stay as it is."""

from __future__ import annotations

import ast

import pytest

from tests.devtools.audit.fixing import HERE, fixed, inside

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


def test_every_new_line_of_the_pairs_is_code() -> None:
    for after in LINES.values():
        ast.parse(inside(after.replace("@", HERE)))
