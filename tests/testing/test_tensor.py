"""Tensors on the device give the host's numbers, share memory as torch's do, and refuse what a device refuses."""

from __future__ import annotations

import copy
import gc
import io
import pickle
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from devicekit.testing import SimConfig, Simulator, StaleTensor, WrongDevice, simulation
from tests.threads import in_threads

pytestmark = pytest.mark.usefixtures("machine")


@pytest.mark.parametrize(
    "make",
    [
        lambda d: torch.zeros(2, 3, device=d),
        lambda d: torch.full((2,), 7, device=d),
        lambda d: torch.arange(1, 9, 2, device=d),
        lambda d: torch.linspace(0, 1, 5, device=d),
        lambda d: torch.eye(3, dtype=torch.bfloat16, device=d),
        lambda d: torch.tensor([[1, 2], [3, 4]], device=d),
        lambda d: torch.as_tensor([1.5], device=d),
        lambda d: torch.ones_like(torch.empty(2, 2), device=d),
        lambda d: torch.empty_strided((2, 2), (1, 2), device=d).fill_(3),
        lambda d: torch.empty(0, device=d),
        lambda d: torch.tensor(3.0, device=d),
        lambda d: torch.ones(2, device=d).new_tensor([4, 5]),
        lambda d: torch.ones(2, device=d).new_ones(3),
        lambda d: torch.zeros_like(torch.ones(2, device="sim:0"), device=d),
        lambda d: torch.zeros(2, device="sim:0").new_full((3,), 4.0, device=d),
        lambda d: torch.tensor([torch.ones(2, device=d)[0], torch.ones(2, device=d)[1]], device=d),
    ],
)
def test_factories_make_what_they_make_on_the_host(make: Callable[[str], torch.Tensor]) -> None:
    there, here = make("sim:1"), make("cpu")
    assert there.device == torch.device("sim", 1)
    assert (there.dtype, there.shape, there.stride()) == (here.dtype, here.shape, here.stride())
    assert torch.equal(there.cpu(), here)


Operation = Callable[[torch.Tensor], object]


@pytest.mark.parametrize(
    "operation",
    [
        lambda x: x @ x.T + 1,
        lambda x: x.softmax(-1),
        lambda x: x[1:, ::2].contiguous(),
        lambda x: x[torch.tensor([2, 0], device=x.device)],
        lambda x: x[torch.tensor([2, 0])],
        lambda x: x[x > 3],
        lambda x: x.nonzero(),
        lambda x: torch.topk(x, 2),
        lambda x: torch.cat([x, x.flip(0)]).sort(descending=True),
        lambda x: x.to(torch.bfloat16).matmul(x.T.to(torch.bfloat16)),
        lambda x: torch.where(x > 2, x, 0.0),
        lambda x: F.layer_norm(x, (4,)),
        lambda x: F.scaled_dot_product_attention(x[None], x[None], x[None], is_causal=True),
        lambda x: torch.mm(x, x.T, out=torch.empty(0, device=x.device)),
        lambda x: x.clone().index_put_((torch.tensor([0], device=x.device),), torch.tensor(9.0)),
        lambda x: x.clone().scatter_(1, torch.zeros(3, 1, dtype=torch.int64, device=x.device), 5.0),
        lambda x: x.clone().t_().unsqueeze_(0),
        lambda x: x.clone().resize_(2, 2),
        lambda x: x.split(2, dim=1),
        lambda x: torch._foreach_add([x, x], 1.0),
        lambda x: x.sum().item(),
        lambda x: x.tolist(),
        lambda x: torch.equal(x, x),
        lambda x: torch.compile(lambda a: a * 2, backend="eager")(x),
    ],
)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_operators_give_the_numbers_of_the_host(operation: Operation, mode: Callable[[], object]) -> None:
    x = torch.arange(12.0).view(3, 4)
    with mode():  # type: ignore[attr-defined]  # both are context managers
        there, here = operation(x.to("sim")), operation(x)
    assert len(flat(there)) == len(flat(here)) > 0
    for one, other in zip(flat(there), flat(here), strict=True):
        assert torch.equal(one, other)


def flat(result: object) -> list[torch.Tensor]:
    if isinstance(result, torch.Tensor):
        return [result.cpu()]
    if isinstance(result, tuple | list):
        return [tensor for item in result for tensor in flat(item)]
    return [torch.as_tensor(result)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_attention_gives_the_very_bits_of_the_host(mode: Callable[[], object]) -> None:
    torch.manual_seed(0)
    query, key, value = (torch.randn(1, 4, 33, 16) for _ in range(3))
    with mode():  # type: ignore[attr-defined]  # both are context managers
        expected = F.scaled_dot_product_attention(query, key, value, is_causal=True)
        made = F.scaled_dot_product_attention(query.to("sim"), key.to("sim"), value.to("sim"), is_causal=True)
    assert torch.equal(made.cpu(), expected)


def test_attention_can_be_trained_through() -> None:
    x = torch.randn(1, 2, 5, 8, device="sim", requires_grad=True)
    F.scaled_dot_product_attention(x, x, x).sum().backward()
    assert x.grad is not None
    twin = x.detach().cpu().requires_grad_()
    F.scaled_dot_product_attention(twin, twin, twin).sum().backward()
    assert torch.allclose(x.grad.cpu(), twin.grad, atol=1e-6)


def test_in_inference_mode_tensors_from_outside_can_be_viewed_and_written_through() -> None:
    x = torch.zeros(2, 3, device="sim")
    with torch.inference_mode():
        first, second = x
        first.fill_(1)
        x.view(-1)[3:].fill_(2)
        assert second.tolist() == [2.0, 2.0, 2.0]
    assert x.tolist() == [[1.0, 1.0, 1.0], [2.0, 2.0, 2.0]]
    assert not x[0].is_inference()


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_tensors_move_in_every_mode(mode: Callable[[], object]) -> None:
    with mode():  # type: ignore[attr-defined]  # both are context managers
        x = torch.arange(4.0).to("sim")
        moved = x.to("sim:1", torch.float16)
        assert (moved.device.index, moved.dtype) == (1, torch.float16)
        assert moved.to("sim:1") is moved
        assert x.reshape(2, 2).data_ptr() == x.data_ptr()
        assert x.view(2, 2).t().reshape(4).tolist() == [0.0, 2.0, 1.0, 3.0]
        assert type(x.to("cpu")) is type(x.cpu()) is torch.Tensor
        assert moved.type_as(x).device.index == 0


def test_views_write_through_to_their_base() -> None:
    x = torch.zeros(3, 2, device="sim")
    x[1] = 5.0
    x.view(-1)[0] = 7.0
    x.unbind()[2].fill_(9.0)
    x[torch.tensor([0], device="sim"), 1] = torch.tensor([3.0], device="sim")
    assert x.tolist() == [[7.0, 3.0], [5.0, 5.0], [9.0, 9.0]]


def test_views_share_memory_which_lives_as_long_as_one_of_them() -> None:
    x = torch.zeros(1 << 20, dtype=torch.uint8, device="sim")
    view = x[100:].view(-1, 4)
    assert torch.sim.memory_allocated() == 1 << 20
    assert view.data_ptr() == x.data_ptr() + 100
    assert view.untyped_storage()._cdata == x.untyped_storage()._cdata
    assert x.untyped_storage().nbytes() == 1 << 20
    del x
    assert torch.sim.memory_allocated() == 1 << 20
    del view
    assert torch.sim.memory_allocated() == 0


def test_a_tensor_that_grows_takes_more_memory() -> None:
    x = torch.zeros(4, device="sim")
    x.resize_(1 << 18)
    assert torch.sim.memory_allocated() == 1 << 20
    out = torch.empty(0, device="sim")
    torch.add(x, 1.0, out=out)
    assert torch.sim.memory_allocated() == 2 << 20


def test_memory_held_only_by_a_cycle_is_freed_by_the_collector() -> None:
    holder: list[object] = [torch.ones(1 << 16, device="sim")]
    holder.append(holder)
    del holder
    assert torch.sim.memory_allocated() == 1 << 18
    gc.collect()
    assert torch.sim.memory_allocated() == 0


def test_different_devices_do_not_mix() -> None:
    x = torch.ones(2, device="sim:0")
    for other in (torch.ones(2), torch.ones(2, device="sim:1")):
        with pytest.raises(WrongDevice, match="same device"):
            x + other
    assert (x + torch.tensor(1.0)).tolist() == [2.0, 2.0]


def test_a_device_that_does_not_exist_is_named() -> None:
    with pytest.raises(WrongDevice, match="sim:5"):
        torch.ones(2, device="sim:5")


def test_out_of_memory_keeps_its_type_through_torch_and_the_device_goes_on(machine: Simulator) -> None:
    linear = torch.nn.Linear(8, 8).to("sim")
    x = torch.ones(2, 8, device="sim")
    held = torch.empty(machine.config.capacity - (4 << 20), dtype=torch.uint8, device="sim")
    with pytest.raises(torch.OutOfMemoryError):
        torch.empty(64 << 20, dtype=torch.uint8, device="sim")
    with pytest.raises(torch.OutOfMemoryError):
        x.repeat(1 << 20, 1)
    assert linear(x).shape == (2, 8)
    del held
    assert torch.empty(64 << 20, dtype=torch.uint8, device="sim").numel() == 64 << 20


def test_asking_for_more_than_the_host_has_is_the_devices_out_of_memory() -> None:
    with pytest.raises(torch.OutOfMemoryError, match="sim:0"):
        torch.empty(1 << 50, dtype=torch.uint8, device="sim")


def test_a_tensor_of_a_machine_that_was_replaced_says_so() -> None:
    x = torch.ones(2, device="sim:1")
    with simulation(SimConfig(device_count=1)):
        for use in (lambda: x + x, x.cpu, lambda: x.copy_(torch.ones(2)), lambda: torch.ones(2).copy_(x)):
            with pytest.raises(StaleTensor, match="another simulated machine"):
                use()
        assert "another simulated machine" in repr(x)
    assert (x + x).tolist() == [2.0, 2.0]


def test_random_numbers_are_the_devices_own() -> None:
    torch.sim.manual_seed_all(3)
    torch.manual_seed(11)
    before = torch.get_rng_state()
    torch.sim.manual_seed_all(3)
    first = [
        torch.rand(4, device="sim"),
        torch.randn(4, device="sim"),
        F.dropout(torch.ones(64, device="sim")),
    ]
    assert torch.equal(torch.get_rng_state(), before), "the host's generator did not move"
    torch.sim.manual_seed_all(3)
    second = [
        torch.rand(4, device="sim"),
        torch.randn(4, device="sim"),
        F.dropout(torch.ones(64, device="sim")),
    ]
    assert all(torch.equal(one, other) for one, other in zip(first, second, strict=True))
    state = torch.sim.get_rng_state(1)
    one = torch.rand(4, device="sim:1")
    torch.sim.set_rng_state(state, 1)
    assert torch.equal(torch.rand(4, device="sim:1"), one)


def test_torch_manual_seed_seeds_the_device() -> None:
    torch.manual_seed(5)
    first = torch.rand(4, device="sim")
    torch.manual_seed(5)
    assert torch.equal(torch.rand(4, device="sim"), first)
    generator = torch.Generator().manual_seed(5)
    assert torch.equal(torch.rand(4, device="sim", generator=generator), first)


def test_modules_move_keep_their_parameters_and_train() -> None:
    torch.manual_seed(0)
    module = torch.nn.Linear(4, 2)
    twin = copy.deepcopy(module)
    weight = module.weight
    module.to("sim")
    assert module.weight is weight
    assert isinstance(module.weight, torch.nn.Parameter)
    for side, device in ((module, "sim"), (twin, "cpu")):
        optimizer = torch.optim.AdamW(side.parameters(), lr=0.1)
        side(torch.ones(3, 4, device=device)).pow(2).mean().backward()
        optimizer.step()
    assert module.weight.grad is not None
    assert module.weight.grad.device.type == "sim"
    assert torch.allclose(module.weight.cpu(), twin.weight)
    module.to(torch.bfloat16)
    assert (module.weight + 0).dtype == torch.bfloat16
    assert module.to("cpu").weight.device.type == "cpu"


def test_a_parameters_data_can_be_replaced_and_frees_what_it_was() -> None:
    parameter = torch.nn.Parameter(torch.ones(1 << 16, device="sim"))
    parameter.data = torch.full((2,), 3.0, dtype=torch.float16, device="sim")
    assert (parameter.shape, parameter.dtype, parameter.tolist()) == ((2,), torch.float16, [3.0, 3.0])
    assert torch.sim.memory_allocated() == 512
    parameter.data.copy_(torch.zeros(2))
    assert parameter.tolist() == [0.0, 0.0]


def test_backward_on_a_second_device_is_refused_in_words() -> None:
    x = torch.ones(3, device="sim:1", requires_grad=True)
    with pytest.raises(NotImplementedError, match="sim:0"):
        (x * 2).sum().backward()


def test_state_moves_by_value_through_copies_pickles_and_files() -> None:
    parameter = torch.nn.Parameter(torch.arange(3.0, device="sim:1"), requires_grad=True)
    parameter.note = "kept"  # type: ignore[attr-defined]  # as engines do
    twin = copy.deepcopy(parameter)
    assert twin.note == "kept"  # type: ignore[attr-defined]  # as above
    buffer = io.BytesIO()
    torch.save(parameter, buffer)
    buffer.seek(0)
    for made in (twin, pickle.loads(pickle.dumps(parameter)), torch.load(buffer, weights_only=True)):
        assert isinstance(made, torch.nn.Parameter)
        assert made.requires_grad
        assert made.device.index == 1
        assert made.data_ptr() != parameter.data_ptr()
        assert made.tolist() == [0.0, 1.0, 2.0]


def test_scalars_read_print_and_index_like_numbers() -> None:
    x = torch.tensor(2, device="sim")
    assert (int(x), float(x), bool(x), f"{x:03d}", [5, 6, 7][x]) == (2, 2.0, True, "002", 7)
    assert "sim:0" in repr(x)
    assert "sim:0" in f"{torch.ones(2, device='sim')}"


def test_numpy_needs_the_host() -> None:
    x = torch.ones(2, device="sim")
    with pytest.raises(TypeError, match="cpu"):
        x.numpy()
    with pytest.raises(TypeError, match="cpu"):
        np.asarray(x)
    assert x.numpy(force=True).tolist() == [1.0, 1.0]


def test_a_default_device_and_the_current_device_are_honoured() -> None:
    with torch.device("sim:1"):
        assert torch.zeros(1).device.index == 1
    with torch.sim.device(1):
        assert torch.zeros(1, device="sim").device.index == 1
        assert torch.ones(1).sim().device.index == 1
    assert torch.zeros(1, device="sim").device.index == 0


def test_threads_share_the_device() -> None:
    def work() -> None:
        for _ in range(50):
            x = torch.ones(256, device="sim")
            assert (x + x).sum().item() == 512

    in_threads(4, work)
    gc.collect()
    assert torch.sim.memory_allocated() == 0


@pytest.mark.parametrize(
    ("use", "error"),
    [
        (lambda: torch.UntypedStorage(8, device="sim"), NotImplementedError),
        (lambda: torch.load(saved(), map_location="sim"), NotImplementedError),
        (lambda: torch.ones(2, device="sim").share_memory_(), NotImplementedError),
        (lambda: torch.ones(2, device="sim").__dlpack__(), BufferError),
        (lambda: torch.empty(2, device="sim", pin_memory=True), RuntimeError),
        (lambda: torch.Generator("sim"), NotImplementedError),
        (lambda: torch.ones(2, device="sim").record_stream(torch.Stream("cpu")), TypeError),
    ],
)
def test_what_it_cannot_do_raises_instead_of_crashing(
    use: Callable[[], object], error: type[Exception]
) -> None:
    with pytest.raises(error):
        use()


def saved() -> io.BytesIO:
    buffer = io.BytesIO()
    torch.save(torch.ones(2), buffer)
    buffer.seek(0)
    return buffer


def test_host_storages_are_made_as_before() -> None:
    assert torch.UntypedStorage(8).nbytes() == 8
    assert torch.UntypedStorage(8, device="cpu").device.type == "cpu"
    assert torch.equal(torch.load(saved(), map_location="cpu"), torch.ones(2))
