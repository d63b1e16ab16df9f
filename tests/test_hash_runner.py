"""The hashing runner tells apart what schedulers get wrong, and its oracle agrees with it."""

from __future__ import annotations

import random

import numpy as np

from devicekit.device import get_device
from devicekit.scheduling.request import Request, SamplingParams
from devicekit.scheduling.scheduler import Scheduler, SchedulerLimits
from tests.hash_runner import HashRunner, expected, salt_of
from tests.scheduling.rig import make_rig


def test_output_is_what_the_oracle_says_however_it_was_scheduled() -> None:
    rng = random.Random(3)
    rig = make_rig(get_device("cpu"), num_pages=24, max_batch_tokens=16)
    prompts = {f"p{i}": [rng.randrange(1, 900) for _ in range(rng.randint(1, 30))] for i in range(12)}
    for identity, prompt in prompts.items():
        rig.add(prompt, 12, id=identity)
    rig.run()
    rig.check()
    for identity, prompt in prompts.items():
        assert rig.outputs[identity] == expected(prompt, 12, rig.salt)


def test_a_corrupted_page_changes_what_comes_out() -> None:
    rig = make_rig(get_device("cpu"))
    request = rig.add([5, 6, 7, 8, 9], 8)
    rig.step(3)
    page = int(rig.scheduler.state.kv.table.pages[rig.scheduler.state.requests[request].row, 0])
    rig.runner.pool.key(0)[page * 4] += 1
    rig.run()
    assert rig.outputs[request] != expected([5, 6, 7, 8, 9], 8, rig.salt)


def test_entries_of_old_weights_are_told_from_new_ones() -> None:
    rig = make_rig(get_device("cpu"))
    prompt = [1, 2, 3, 4, 5, 6]
    request = rig.add(prompt, 10)
    rig.step(4)
    computed, known = rig.progress(request)
    before = rig.salt
    rig.runner.weights["layers.0.bias"].data += 1
    rig.run()
    after = salt_of(rig.runner.weights)
    mixed = expected(prompt, 10, after, known=known, kept=computed, kept_salt=before)
    assert rig.outputs[request] == mixed
    assert mixed != expected(prompt, 10, after, known=known)


def test_a_window_hides_what_lies_before_it_in_all_layers_or_in_the_last() -> None:
    found: dict[str, list[tuple[int, ...]]] = {"whole": [], "window": [], "partial_window": []}
    for name, outputs in found.items():
        window_pages = 20 if name == "partial_window" else None
        limits = SchedulerLimits(num_pages=24, page_size=4, max_batch_tokens=16, window_pages=window_pages)
        for first in (1, 900):
            windows = {} if name == "whole" else {name: 5}
            runner = HashRunner(get_device("cpu"), num_pages=24, page_size=4, **windows)
            scheduler = Scheduler(runner, runner.device, limits)
            params = SamplingParams(max_new_tokens=1, temperature=0.0)
            scheduler.add(Request("r", np.array([first, *range(2, 22)], np.int32), params))
            scheduler.step()
            outputs.append(scheduler.step().outputs[0].tokens)
    # What comes first changes what comes out, unless every layer looks back only so far.
    assert len(set(found["whole"])) == len(set(found["partial_window"])) == 2
    assert len(set(found["window"])) == 1
    assert found["whole"][0] != found["partial_window"][0] != found["window"][0]
