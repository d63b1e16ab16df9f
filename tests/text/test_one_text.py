"""What is streamed, what is answered whole, and what a naive reading of the tokens gives are the same text."""

from __future__ import annotations

import random
from dataclasses import dataclass

import numpy as np
import pytest

from devicekit.device import Device, get_device
from devicekit.engine import Generation
from devicekit.scheduling.batch import ForwardBatch, Logprobs, StepOutput
from devicekit.scheduling.request import Finish, FinishKind, Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from devicekit.text import RequestText
from tests.hash_runner import HashRunner
from tests.text.random_tokenizers import KINDS, Made, make

LENGTH = 24
PAGES = 32


class Scripted(HashRunner):
    """Says what it was told to say, to whoever asks."""

    script: list[int]
    prompt: int

    def step(self, batch: ForwardBatch) -> StepOutput:
        output = super().step(batch)
        at = batch.positions[batch.logits_indices] + 1 - self.prompt
        output.tokens = np.array([self.script[one] for one in at.tolist()], np.int32)
        if batch.top_logprobs is not None:
            zeros = np.zeros((len(at), 0), np.float32)
            output.logprobs = Logprobs(np.zeros(len(at), np.float32), zeros.astype(np.int32), zeros)
        return output


@dataclass
class Asked:
    """One request's outcome, and the texts that came on the way."""

    generation: Generation
    pieces: list[str]
    offsets: list[int]


def ask(
    made: Made, device: Device, prompt: list[int], script: list[int], stream: bool, params: SamplingParams
) -> Asked:
    size = len(made.tokenizer) + 16
    runner = Scripted(
        device, num_pages=PAGES, page_size=4, vocab_size=size, eos_token_ids=frozenset([made.special[2]])
    )
    runner.script, runner.prompt = script, len(prompt)
    scheduler = Scheduler(
        runner, device, SchedulerLimits(PAGES, 4, max_running=2), detokenizer=made.vocabulary
    )
    request = Request("r", np.array(prompt, np.int32), params, stream=stream)
    maker = None if params.stop else RequestText(made.vocabulary, prompt, params.text_options)
    generation = Generation("r", len(prompt), maker=maker, keep_stop=params.keep_stop)
    scheduler.add(request)
    pieces = []
    while not generation.done:
        pieces += [generation.receive(output) for output in scheduler.step().outputs]
    return Asked(generation, pieces, generation.offsets)


def expected(made: Made, prompt: list[int], script: list[int], params: SamplingParams) -> tuple[str, Finish]:
    """The same by decoding everything again and again, and looking for every stop string in all of it."""
    skip = params.skip_special_tokens
    before = len(made.decode(prompt, skip))

    def text(count: int) -> str:
        return made.decode([*prompt, *script[:count]], skip)[before:]

    ends = {*params.stop_token_ids, *(() if params.ignore_eos else made.special[2:])}
    last = next(
        (at for at in range(params.max_new_tokens) if script[at] in ends and at + 1 >= params.min_new_tokens),
        None,
    )
    count = params.max_new_tokens if last is None else last
    first = len(text(min(count, max(0, params.min_new_tokens - 1))).rstrip("\N{REPLACEMENT CHARACTER}"))
    whole = text(count)
    searched = text(count + 1) if params.keep_stop and last is not None else whole
    found = [
        (searched.find(stop, first), -len(stop), stop) for stop in params.stop if stop in searched[first:]
    ]
    if found:
        at, size, stop = min(found)
        return searched[: at - size if params.keep_stop else at], Finish(FinishKind.STOP, stop)
    if last is not None:
        return searched, Finish(FinishKind.STOP, script[last])
    return whole, Finish(FinishKind.LENGTH)


@pytest.fixture(scope="module")
def device() -> Device:
    return get_device("cpu")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("seed", range(25))
def test_stream_whole_and_a_naive_reading_agree(kind: str, seed: int, device: Device) -> None:
    rng = random.Random(f"one text {kind} {seed}")
    made = make(kind, rng)
    prompt, script = [made.special[0], *rng.choice(made.whole)], []
    while len(script) < LENGTH:
        script += [rng.choice(made.special[:2])] if rng.random() < 0.15 else rng.choice(made.whole)
    if rng.random() < 0.5:
        script.insert(rng.randrange(8, len(script)), made.special[2])
    skip = rng.random() < 0.6
    text = made.decode(script, skip)
    stops = []
    for _ in range(rng.randint(0, 4)):
        at = rng.randrange(max(1, len(text)))
        stops.append(text[at : at + rng.randint(1, 6)] + ("" if rng.random() < 0.7 else "?"))
    params = SamplingParams(
        max_new_tokens=_whole_characters(made, script, LENGTH),
        temperature=0,
        stop=tuple(stop for stop in stops if stop and "\N{REPLACEMENT CHARACTER}" not in stop),
        min_new_tokens=rng.choice([0, 0, 3, 9]),
        stop_token_ids=tuple(rng.sample(made.special[:2], rng.randint(0, 1))),
        ignore_eos=rng.random() < 0.3,
        skip_special_tokens=skip,
        keep_stop=rng.random() < 0.3,
        logprobs=0 if rng.random() < 0.5 else None,
    )
    whole = ask(made, device, prompt, script, False, params)
    stream = ask(made, device, prompt, script, True, params)
    right = expected(made, prompt, script, params)
    assert (whole.generation.text, whole.generation.finish) == right, params
    assert "".join(stream.pieces) == stream.generation.text == whole.generation.text
    assert stream.generation.finish == whole.generation.finish
    assert stream.generation.tokens == whole.generation.tokens
    if params.logprobs is not None:
        assert stream.offsets == whole.offsets == sorted(whole.offsets)
        assert len(whole.offsets) == len(whole.generation.tokens)
        assert whole.offsets[-1] <= len(whole.generation.text)


def _whole_characters(made: Made, script: list[int], most: int) -> int:
    """A length at which no character is cut."""
    while made.decode(script[:most], True).endswith("\N{REPLACEMENT CHARACTER}"):
        most -= 1
    return most


@pytest.mark.parametrize("stop", ["q" * 100, "a" * 100])
def test_only_what_may_begin_a_stop_string_is_held_back(stop: str, device: Device) -> None:
    made = make("byte_level", random.Random(1))
    letter = next(run[0] for run in made.whole if made.decode(run, True) == "a")
    params = SamplingParams(max_new_tokens=20, temperature=0, stop=(stop,))
    asked = ask(made, device, [letter], [letter] * 20, True, params)
    assert asked.pieces == (["a"] * 20 if stop[0] == "q" else ["a" * 20])


def test_what_is_held_back_is_given_out_when_a_request_is_broken_off(device: Device) -> None:
    made = make("byte_level", random.Random(1))
    text = RequestText(made.vocabulary, [], SamplingParams(stop=("aaab", "aa")).text_options)
    letter = next(run[0] for run in made.whole if made.decode(run, True) == "a")
    assert text.push(letter) is None
    assert text.push(letter) is None
    assert text.take() == ""
    assert text.end(searched=False) is None
    assert text.take() == "aa"
