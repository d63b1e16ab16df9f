"""Tokens that come of logits that are no numbers: they end their request, or are counted and go on, as is set."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass, field, replace

import numpy as np
import pytest
import torch

from devicekit.device import Device
from devicekit.scheduling.batch import ForwardBatch, ModelLimits, StepOutput
from devicekit.scheduling.messages import Output
from devicekit.scheduling.request import FinishKind, Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from tests.hash_runner import HashRunner
from tests.seeds import drawn_seed


class Failing:
    """A runner of which some tokens come of no numbers, as drawn; it says which, as runners do."""

    def __init__(self, runner: HashRunner, rng: random.Random | None, share: float) -> None:
        self._runner, self._rng, self._share = runner, rng, share

    def named_weights(self) -> Iterator[tuple[str, torch.Tensor]]:
        """Of the model."""
        return self._runner.named_weights()

    @property
    def limits(self) -> ModelLimits:
        return self._runner.limits

    def step(self, batch: ForwardBatch) -> StepOutput:
        out = self._runner.step(batch)
        if self._rng is None or not len(out.tokens):
            return out
        failed = np.array([self._rng.random() < self._share for _ in out.tokens])
        tokens = np.where(failed, -1 - out.tokens, out.tokens).astype(np.int32)
        return replace(out, tokens=tokens, invalid=bool(failed.any()))


@dataclass
class Seen:
    """What came out for one request."""

    tokens: list[int] = field(default_factory=list)
    logprobs: list[tuple[int, float]] = field(default_factory=list)
    last: Output | None = None


def _requests(rng: random.Random) -> list[Request]:
    found = []
    for number in range(rng.randrange(2, 7)):
        params = SamplingParams(
            max_new_tokens=rng.randrange(1, 20),
            temperature=0.0,
            logprobs=rng.choice((None, None, 0, 2)),
            stop_token_ids=tuple(rng.sample(range(97), rng.choice((0, 0, 3)))),
        )
        prompt = np.array([rng.randrange(97) for _ in range(rng.randrange(1, 30))], np.int32)
        found.append(Request(f"r{number}", prompt, params, stream=rng.random() < 0.5))
    return found


def _served(device: Device, seed: int, how: str, share: float) -> tuple[dict[str, Seen], Scheduler]:
    rng = random.Random(seed)
    runner = HashRunner(device, num_pages=64, page_size=4, vocab_size=97)
    limits = SchedulerLimits(
        num_pages=64, page_size=4, max_running=4, max_batch_tokens=16, invalid_logits=how, checked=True
    )
    requests = _requests(rng)
    one = Scheduler(Failing(runner, rng if share else None, share), device, limits)
    seen = {request.id: Seen() for request in requests}
    for request in requests:
        one.add(request)
    while one.state.requests:
        for output in one.step().outputs:
            found = seen[output.id]
            found.tokens += output.tokens
            found.logprobs += [(given.token, given.logprob) for given in output.logprobs]
            found.last = output
    return seen, one


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_marked_tokens_go_on_as_if_nothing_were_and_are_counted(device: Device, share: float) -> None:
    first = drawn_seed("INVALID_SEED")
    for seed in range(first, first + 20):
        sound, _ = _served(device, seed, "mark", 0.0)
        marked, scheduler = _served(device, seed, "mark", share)
        counts = 0
        for identity, one in marked.items():
            other = sound[identity]
            assert one.last is not None
            assert other.last is not None
            assert one.tokens == other.tokens, (seed, identity)
            assert one.logprobs == other.logprobs, (seed, identity)
            assert one.last.finish == other.last.finish, (seed, identity)
            assert one.last.invalid_logits <= len(one.tokens)
            counts += one.last.invalid_logits
            if share == 1.0:
                assert one.last.invalid_logits == len(one.tokens), (seed, identity)
        assert scheduler.state.requests.invalid_logits == counts, seed


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_refused_tokens_end_their_request_with_what_came_before_and_no_other(
    device: Device, share: float
) -> None:
    first = drawn_seed("INVALID_SEED")
    for seed in range(first, first + 20):
        sound, _ = _served(device, seed, "refuse", 0.0)
        refused, scheduler = _served(device, seed, "refuse", share)
        ended = 0
        for identity, one in refused.items():
            assert one.last is not None
            assert one.last.finish is not None
            if one.last.finish.kind is not FinishKind.ERROR:
                assert one.tokens == sound[identity].tokens, (seed, identity)
                assert one.logprobs == sound[identity].logprobs, (seed, identity)
                continue
            ended += 1
            assert str(len(one.tokens)) in one.last.finish.message
            assert one.tokens == sound[identity].tokens[: len(one.tokens)], (seed, identity)
            assert len(one.tokens) < len(sound[identity].tokens), (seed, identity)
            assert one.logprobs == sound[identity].logprobs[: len(one.logprobs)], (seed, identity)
            assert one.last.invalid_logits == 0
        assert scheduler.state.requests.invalid_logits == ended, seed
        assert ended == len(refused) if share == 1.0 else True
