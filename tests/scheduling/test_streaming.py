"""Streams leave a step as columns: nothing is told twice, nothing is lost, wherever a request ends or is moved."""

from __future__ import annotations

import random

import numpy as np
import pytest

from devicekit.device import Device
from devicekit.scheduling.messages import Abort, Continue, Pause, PauseMode, PauseReply
from devicekit.scheduling.request import Request, SamplingParams
from tests.hash_runner import expected
from tests.scheduling.rig import make_rig


def test_tokens_of_streams_come_as_columns(device: Device) -> None:
    rig = make_rig(device)
    for number in range(3):
        rig.add([1, 2, number], 6, id=f"{number}", stream=number != 1)
    rig.step()
    columns = rig.step().columns
    assert columns is not None
    assert [stream.id for stream in columns.streams] == ["0", "2"]
    assert columns.offsets.tolist() == [0, 1, 2]
    assert columns.output_tokens.tolist() == [2, 2]
    assert columns.tokens.tolist() == [expected([1, 2, number], 2, rig.salt)[-1] for number in (0, 2)]
    rig.run()
    assert rig.scheduler.step().columns is None


def test_columns_are_values_that_later_steps_leave_alone(device: Device) -> None:
    rig = make_rig(device)
    rig.add([1, 2], 20, id="a", stream=True)
    kept = [rig.step() for _ in range(6)]
    assert [step.outputs[0].tokens[0] for step in kept] == expected([1, 2], 6, rig.salt)
    assert [step.outputs[0].output_tokens for step in kept] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("seed", range(6))
def test_streams_tell_each_token_once_while_requests_come_go_and_are_moved(device: Device, seed: int) -> None:
    rng = random.Random(seed)
    rig = make_rig(device, num_pages=24, eos=frozenset({7}))
    asked: dict[str, list[int]] = {}
    for turn in range(60):
        if rng.random() < 0.5:
            prompt = [rng.randrange(1, 50) for _ in range(rng.randint(1, 9))]
            identity = rig.add(prompt, rng.randint(1, 20), stream=rng.random() < 0.8)
            asked[identity] = prompt
        if rng.random() < 0.1 and asked:
            rig.post(Abort(f"abort {turn}", request_id=rng.choice([*asked])))
        if rng.random() < 0.1:
            rig.do(Pause(f"pause {turn}", PauseMode.RETRACT), PauseReply)
            rig.do(Continue(f"go on {turn}"), PauseReply)
        rig.step()
    rig.run()
    for identity, prompt in asked.items():
        told = rig.outputs[identity]
        assert told == expected(prompt, len(told), rig.salt), (seed, identity)
        assert rig.last[identity].output_tokens == len(told)


def test_what_asks_for_more_than_tokens_is_told_one_by_one(device: Device) -> None:
    rig = make_rig(device)
    rig.add([1, 2], id="plain", stream=True)
    scored = SamplingParams(max_new_tokens=4, temperature=0.0, logprobs=1)
    rig.scheduler.add(Request("scored", np.array([1, 3], np.int32), scored, stream=True))
    rig.step()
    step = rig.step()
    assert step.columns is not None
    assert [stream.id for stream in step.columns.streams] == ["plain"]
    [told] = step.told
    assert (told.id, len(told.tokens), len(told.logprobs)) == ("scored", 1, 1)
