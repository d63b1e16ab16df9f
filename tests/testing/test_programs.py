"""Random programs of views, indexing, factories and writing give the host's numbers, in every mode of torch.

A program is drawn while it runs on the host. It then runs on the device as it is, in inference mode, and captured
and replayed twice, the second time on other inputs. ``PROGRAMS_SEED`` repeats a run.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field

import pytest
import torch

from devicekit.testing import CaptureError, Simulator
from devicekit.testing.graphs import SimGraph
from tests.seeds import drawn_seed

pytestmark = pytest.mark.usefixtures("machine")

SEED = drawn_seed("PROGRAMS_SEED")
PROGRAMS = 60
STEPS = 14


@dataclass
class State:
    """What a program has made so far on one device: tensors, and what was read of them."""

    device: str
    tensors: list[torch.Tensor]
    read: list[object] = field(default_factory=list)

    def of(self, which: int) -> torch.Tensor:
        return self.tensors[which]


Step = Callable[[State], object]


def views(draw: random.Random, which: int, shape: torch.Size) -> Step:
    rank = len(shape)
    kinds: list[Step] = [
        lambda s: s.of(which).view(-1),
        lambda s: s.of(which)[None],
        lambda s: s.of(which)[..., None].expand(*shape, 2),
        lambda s: s.of(which).detach(),
        lambda s: s.of(which).squeeze(),
        lambda s: s.of(which).reshape(-1),
    ]
    if rank:
        dim, size = draw.randrange(-rank, rank), shape[draw.randrange(rank)]
        first = draw.randrange(-shape[0], shape[0]) if shape[0] else 0
        low, high, step = draw.randint(-3, 3), draw.randint(-3, 4), draw.randint(1, 2)
        order = draw.sample(range(rank), rank)
        pieces = draw.randint(1, 3)
        last = draw.randrange(-1, 1)
        kinds += [
            lambda s: s.of(which)[first],
            lambda s: s.of(which)[..., last],
            lambda s: s.of(which)[low:high:step],
            lambda s: s.of(which).permute(order),
            lambda s: s.of(which).transpose(0, dim),
            lambda s: s.of(which).narrow(dim, 0, min(1, size)),
            lambda s: s.of(which).unbind(dim)[0],
            lambda s: s.of(which).chunk(pieces, dim)[-1],
            lambda s: s.of(which).split(pieces, dim)[0],
            lambda s: s.of(which).select(dim, -1),
            lambda s: s.of(which).unfold(dim, 1, 1),
            lambda s: list(s.of(which))[-1],
        ]
    if rank > 1:
        other = draw.randrange(-shape[1], shape[1]) if shape[1] else 0
        kinds += [
            lambda s: s.of(which)[0, other],
            lambda s: s.of(which).diagonal(),
            lambda s: s.of(which).flatten(0, 1),
            lambda s: s.of(which).mT,
            lambda s: s.of(which)[:, low:high],
        ]
    return draw.choice(kinds)


def factories(draw: random.Random, which: int, shape: torch.Size) -> Step:
    rows, columns, value = draw.randint(1, 4), draw.randint(1, 4), draw.randint(-4, 4)
    kinds: list[Step] = [
        lambda s: torch.zeros(rows, columns, device=s.device),
        lambda s: torch.ones(rows, device=s.device, dtype=torch.int64),
        lambda s: torch.empty(rows, columns, device=s.device).fill_(value),
        lambda s: torch.full((rows, columns), value, device=s.device),
        lambda s: torch.arange(rows * columns, device=s.device),
        lambda s: torch.arange(rows * columns, device=s.device, dtype=torch.float32).view(rows, columns),
        lambda s: torch.linspace(0, value, columns, device=s.device),
        lambda s: torch.eye(rows, columns, device=s.device),
        lambda s: torch.tril_indices(rows, columns, device=s.device),
        lambda s: torch.empty_strided((rows, 2), (1, rows), device=s.device).zero_(),
        lambda s: torch.zeros_like(s.of(which)),
        lambda s: torch.full_like(s.of(which), value),
        lambda s: s.of(which).new_ones(rows, columns),
        lambda s: s.of(which).new_full((rows,), value),
        lambda s: torch.hann_window(rows, device=s.device),
        lambda s: torch.meshgrid(
            torch.arange(rows, device=s.device), torch.arange(columns, device=s.device), indexing="ij"
        )[1],
        lambda s: s.of(which).clone(),
        lambda s: s.of(which).float(),
    ]
    return draw.choice(kinds)


def indexing(draw: random.Random, which: int, shape: torch.Size) -> Step:
    size = shape[0] if shape else 1
    count = draw.randint(1, 4)

    def ids(s: State, bound: int = max(size, 1)) -> torch.Tensor:
        return torch.arange(count, device=s.device).mul(3).remainder(bound)

    def written_ids(s: State) -> torch.Tensor:
        return torch.arange(min(count, size), device=s.device)

    def set_rows(s: State) -> None:
        s.of(which)[written_ids(s)] = 5

    def add_rows(s: State) -> None:
        rows = written_ids(s)
        s.of(which).index_add_(0, rows, torch.ones_like(s.of(which)[rows]))

    def set_masked(s: State) -> None:
        tensor = s.of(which)
        tensor[tensor > 2] = -1

    kinds: list[Step] = [
        lambda s: s.of(which)[ids(s)],
        lambda s: s.of(which).index_select(0, ids(s)),
        lambda s: s.of(which)[ids(s), 0],
        lambda s: s.of(which)[..., ids(s, shape[-1] if shape else 1)],
        lambda s: torch.nn.functional.embedding(ids(s), s.of(which)),
        lambda s: s.of(which).take(ids(s, max(s.of(which).numel(), 1))),
        lambda s: s.of(which).gather(0, torch.zeros_like(s.of(which), dtype=torch.int64)),
        lambda s: torch.where(s.of(which) > 0, s.of(which), 0),
        set_rows,
        add_rows,
    ]
    if shape:
        # Of a mask without dimensions torch reads the value.
        kinds.append(set_masked)
    return draw.choice(kinds)


def writing(draw: random.Random, which: int, shape: torch.Size) -> Step:
    value, place = draw.randint(-3, 3), draw.randrange(-1, 1)

    def set_first(s: State) -> None:
        s.of(which)[place] = value

    def set_piece(s: State) -> None:
        s.of(which)[..., :2] = value

    def set_from_another(s: State) -> None:
        s.of(which)[0] = s.of(which)[-1].clone()

    kinds: list[Step] = [
        lambda s: (s.of(which).add_(value), None)[1],
        lambda s: (s.of(which).mul_(2), None)[1],
        lambda s: (s.of(which).copy_(s.of(which).clone().flip(0)), None)[1],
        lambda s: (s.of(which).view(-1)[1:3].fill_(value), None)[1],
        lambda s: (torch._foreach_add_([s.of(which)], value), None)[1],
        lambda s: (torch.add(s.of(which), value, out=s.of(which)), None)[1],
        lambda s: torch.add(s.of(which), value, out=torch.empty(0, device=s.device, dtype=s.of(which).dtype)),
        lambda s: s.of(which).clone().t_(),
        lambda s: s.of(which).clone().unsqueeze_(0),
        lambda s: s.of(which).clone().resize_(min(2, s.of(which).numel())),
        lambda s: s.of(which).clone().add_(1).t_() + 1,
        lambda s: s.of(which).cumsum(0),
        lambda s: s.of(which).sum(),
        lambda s: s.of(which).sort()[0],
        set_first,
        set_piece,
        set_from_another,
    ]
    return draw.choice(kinds)


def reading(draw: random.Random, which: int, shape: torch.Size) -> Step:
    at = tuple(draw.randrange(-size, size) for size in shape if size)
    kinds: list[Step] = [
        lambda s: s.read.append(s.of(which)[at].item()),
        lambda s: s.read.append(s.of(which)[0].tolist()),
        lambda s: s.read.append(float(s.of(which)[at])),
        lambda s: s.read.append(bool(s.of(which)[at] > 1)),
        lambda s: s.read.append([f"{row}" for row in s.of(which)[at].cpu().view(-1).tolist()]),
        lambda s: s.of(which)[s.of(which) > 1],
        lambda s: s.of(which).nonzero(),
        lambda s: s.of(which)[[0, -1]],
        lambda s: s.of(which)[torch.tensor([0])],
        lambda s: s.of(which)[torch.zeros((), dtype=torch.int64, device=s.device)],
    ]
    return draw.choice(kinds)


CAPTURABLE = (views, views, factories, indexing, writing, writing)


def inputs(fill: int) -> list[torch.Tensor]:
    return [
        torch.arange(12.0).view(3, 4) - fill,
        torch.arange(fill, fill + 6).view(2, 3),
        torch.full((4,), fill, dtype=torch.float16),
    ]


def advance(state: State, step: Step) -> None:
    made = step(state)
    if isinstance(made, torch.Tensor):
        state.tensors.append(made)


def drawn(
    draw: random.Random, kinds: tuple[Callable[[random.Random, int, torch.Size], Step], ...]
) -> list[Step]:
    """A program that the host can run: steps that torch refuses there are left out."""
    state = State("cpu", inputs(1))
    program: list[Step] = []
    while len(program) < STEPS:
        which = draw.randrange(len(state.tensors))
        step = draw.choice(kinds)(draw, which, state.of(which).shape)
        try:
            advance(state, step)
        except (RuntimeError, IndexError, TypeError, ValueError, UserWarning):
            continue
        program.append(step)
    return program


def on_host(program: list[Step], fill: int) -> State:
    state = State("cpu", inputs(fill))
    for step in program:
        advance(state, step)
    return state


def same_tensors(there: list[torch.Tensor], here: list[torch.Tensor]) -> None:
    assert len(there) == len(here)
    for one, other in zip(there, here, strict=True):
        assert (one.dtype, one.shape) == (other.dtype, other.shape)
        assert torch.equal(one.cpu(), other)


def same(there: State, here: State) -> None:
    same_tensors(there.tensors, here.tensors)
    assert there.read == here.read


@contextmanager
def told(number: int) -> Iterator[None]:
    try:
        yield
    except BaseException as error:
        error.add_note(f"program {number} of PROGRAMS_SEED={SEED}")
        raise


@pytest.mark.parametrize("mode", [nullcontext, torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("made_in_the_mode", [True, False])
def test_a_program_computes_what_it_computes_on_the_host(
    mode: Callable[[], AbstractContextManager[None]], made_in_the_mode: bool
) -> None:
    for number in range(PROGRAMS):
        with told(number):
            program = drawn(random.Random(f"{SEED} {number}"), (*CAPTURABLE, reading, indexing))
            here = on_host(program, 1)
            there = State("sim:0", [] if made_in_the_mode else moved(1))
            with mode():
                if made_in_the_mode:
                    there.tensors += moved(1)
                for step in program:
                    advance(there, step)
                same(there, here)
            same(there, here)


def moved(fill: int) -> list[torch.Tensor]:
    return [tensor.to("sim:0") for tensor in inputs(fill)]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_a_captured_program_computes_at_each_replay_from_what_its_inputs_hold(
    machine: Simulator, mode: Callable[[], AbstractContextManager[None]]
) -> None:
    for number in range(PROGRAMS):
        with told(number):
            program = drawn(random.Random(f"{SEED} captured {number}"), CAPTURABLE)
            graph = SimGraph(machine.device(0))
            static = moved(1)
            there = State("sim:0", list(static))
            with mode(), graph.capture():
                for step in program:
                    advance(there, step)
            same_tensors(static, inputs(1))
            for fill in (1, 3):
                for tensor, value in zip(static, inputs(fill), strict=True):
                    tensor.copy_(value)
                graph.replay()
                same(there, on_host(program, fill))


def test_whatever_reads_back_is_refused_in_a_capture(machine: Simulator) -> None:
    for number in range(PROGRAMS):
        with told(number):
            step = drawn(random.Random(f"{SEED} read {number}"), (reading,))[0]
            state = State("sim:0", moved(1))
            graph = SimGraph(machine.device(0))
            with pytest.raises(CaptureError, match="cannot be part of a graph"), graph.capture():
                advance(state, step)
            same_tensors(state.tensors, inputs(1))


def test_a_buffer_that_is_filled_before_the_replay_may_hold_anything_in_the_capture(
    machine: Simulator,
) -> None:
    table = torch.arange(6.0).view(3, 2).to("sim")
    rows = torch.empty(2, dtype=torch.int64, device="sim")
    target = torch.zeros(3, 2, device="sim")
    graph = SimGraph(machine.device(0))
    with graph.capture():
        found = table.index_select(0, rows)
        taken = table.gather(0, rows[:, None]) + found
        target.index_add_(0, rows, taken)
    rows.copy_(torch.tensor([2, 1]))
    graph.replay()
    assert found.tolist() == [[4.0, 5.0], [2.0, 3.0]]
    assert target.tolist() == [[0.0, 0.0], [4.0, 5.0], [8.0, 9.0]]


def test_what_is_wrong_in_its_shapes_is_an_error_of_the_capture(machine: Simulator) -> None:
    x = torch.ones(2, 3, device="sim")
    with (
        pytest.raises(RuntimeError, match="shapes cannot be multiplied"),
        SimGraph(machine.device(0)).capture(),
    ):
        x @ x


def test_a_capture_takes_no_random_numbers_and_a_replay_takes_them(machine: Simulator) -> None:
    torch.manual_seed(7)
    expected = [torch.rand(3, device="sim").tolist(), torch.rand(3, device="sim").bernoulli().tolist()]
    torch.manual_seed(7)
    graph = SimGraph(machine.device(0))
    with graph.capture():
        drawn_there = [torch.rand(3, device="sim"), torch.rand(3, device="sim").bernoulli()]
    graph.replay()
    assert [tensor.tolist() for tensor in drawn_there] == expected
