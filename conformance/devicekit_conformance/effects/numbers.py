"""Random numbers are the device's own: seeded, saved and restored exactly."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from devicekit_conformance.effects import effect
from devicekit_conformance.trial import Trial

# torch's own generator for the host tells seeds apart by 32 bits, so more is asked of nobody.
_SEEDS = (1234, 1235, 0, 1, (1 << 16) + 1234, (1 << 31) + 1234)


_DRAWN: dict[tuple[int, int], dict[int, list[float]]] = {}  # by backend and device: what followed each seed


def _draw(trial: Trial, index: int | None = None, count: int = 16) -> list[float]:
    return list(trial.ctx.probe.random(trial.index if index is None else index, count))


_KINDS: tuple[Callable[[torch.Tensor], object], ...] = (
    torch.Tensor.normal_, torch.Tensor.uniform_, torch.Tensor.exponential_, torch.Tensor.bernoulli_,
)  # fmt: skip


def _of_every_kind(trial: Trial) -> list[list[float]]:
    """Numbers of several distributions, an odd count of each: some generators make two at once and keep one."""
    found: list[list[float]] = []
    for fill in _KINDS:
        numbers = trial.tensor(12).view(torch.float32)
        with contextlib.suppress(RuntimeError, NotImplementedError):  # not every device has every kind
            fill(numbers)
            found.append(numbers.cpu().tolist())
    return found


@effect("manual_seed")
def manual_seed(trial: Trial) -> None:
    drawn = _DRAWN.setdefault((id(trial.ctx), trial.index), {})
    for seed in (*_SEEDS, *_SEEDS):
        trial.call(trial.index, seed)
        numbers = _draw(trial)
        trial.expect(drawn.setdefault(seed, numbers) == numbers, f"two draws after the seed {seed} differ")
    for seed in (77, (1 << 32) + 77):  # where torch tells the seed, it is the whole of it
        trial.call(trial.index, seed)
        with trial.current(trial.index):
            told = trial.own("initial_seed")
        if told is not None and seed == 77 and told != seed:
            break  # it is told of something else
        trial.expect(told is None or told == seed, f"the seed is {told} after it was set to {seed}")
    for seed in _SEEDS[1:]:
        trial.expect(
            drawn[seed] != drawn[_SEEDS[0]], f"the seeds {_SEEDS[0]} and {seed} give the same numbers"
        )
    trial.expect(drawn[0] != drawn[1], "the seeds 0 and 1 give the same numbers")
    trial.call(trial.index, (1 << 63) - 1)
    last = _draw(trial)
    trial.call(trial.index, (1 << 63) - 1)
    trial.expect(_draw(trial) == last, "two draws after the largest seed differ")
    followed = []
    for _ in range(2):
        _of_every_kind(trial)
        trial.call(trial.index, 5)
        followed.append(_of_every_kind(trial))
    trial.expect(followed[0] == followed[1], "after other distributions were drawn from, a seed gives others")
    if trial.has("set_rng_state") and trial.has("get_rng_state") and trial.ctx.claims("rng_state"):
        for _ in range(2):  # a state that was restored leaves nothing for later
            trial.other("set_rng_state", trial.index, trial.other("get_rng_state", trial.index))
            trial.call(trial.index, _SEEDS[0])
            same = _draw(trial) == drawn[_SEEDS[0]]
            trial.expect(same, "after a state was restored, other numbers follow a seed")
    for index in trial.others:
        trial.call(trial.index, 5)
        first = _draw(trial, index)
        trial.call(trial.index, 5)
        trial.expect(_draw(trial, index) != first, f"it seeds device {index} as well")


@effect("get_rng_state")
def get_rng_state(trial: Trial) -> None:
    _draw(trial, count=3)
    state, again = trial.call(trial.index), trial.call(trial.index)
    trial.expect(state.dtype == torch.uint8, f"its dtype is {state.dtype}")
    trial.expect(state.device.type == "cpu", f"it is on {state.device}")
    trial.expect(torch.equal(state, again), "two readings in a row differ")
    own = trial.own("get_rng_state", trial.index)
    if (
        isinstance(own, torch.Tensor) and own.numel() == state.numel()
    ):  # or it has a form of the backend's own
        trial.expect(torch.equal(state, own.cpu()), "it is not what torch's own get_rng_state gives")
    kept = state.clone()
    first = _draw(trial)
    later = trial.call(trial.index)
    trial.expect(
        torch.equal(state, kept), "a state that was returned before changed while numbers were drawn"
    )
    trial.expect(not torch.equal(later, kept), "it is the same after numbers were drawn")
    later.zero_()
    trial.call(trial.index)
    if trial.has("set_rng_state") and trial.ctx.claims("rng_state"):
        trial.other("set_rng_state", trial.index, kept.clone())
        trial.equal(_draw(trial), first, "what is drawn after the state was restored")
        _of_every_kind(trial)
        kept, first_of_all = trial.call(trial.index).clone(), _of_every_kind(trial)
        _draw(trial, count=7)
        trial.other("set_rng_state", trial.index, kept)
        trial.equal(
            _of_every_kind(trial), first_of_all, "what several distributions give after it was restored"
        )


@effect("set_rng_state")
def set_rng_state(trial: Trial) -> None:
    if not (trial.has("get_rng_state") and trial.ctx.claims("rng_state")):
        return

    def state(index: int) -> torch.Tensor:
        own, hooks = trial.own("get_rng_state", index), trial.other("get_rng_state", index)
        same_form = isinstance(own, torch.Tensor) and own.numel() == hooks.numel()
        found: torch.Tensor = own if same_form else hooks
        return found.clone()

    for skipped in (5, 3):
        _draw(trial, count=skipped)
        saved = state(trial.index)
        strange = {index: state(index) for index in trial.others}
        wanted = _draw(trial)
        for _ in range(2):
            _draw(trial, count=7)
            given = saved.clone()
            trial.call(trial.index, given)
            trial.expect(torch.equal(given, saved), "it changed the state that it was given")
            trial.equal(_draw(trial), wanted, "what is drawn after the state was restored")
        several = torch.stack([state(trial.index), saved])
        trial.call(trial.index, several[1])
        trial.equal(_draw(trial), wanted, "what is drawn after a state was restored that is a row of several")
        _of_every_kind(trial)
        saved = state(trial.index)
        first = _of_every_kind(trial)
        _draw(trial, count=7)
        trial.call(trial.index, saved)
        trial.equal(_of_every_kind(trial), first, "what several distributions give after it was restored")
        for index, before in strange.items():
            trial.expect(torch.equal(state(index), before), f"it changed the state of device {index}")
