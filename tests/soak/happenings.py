"""What happens to an engine besides its operators: requests come, time passes, parts and devices fail.

Each function does one thing, as a draw says, and answers False where there was nothing to do.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

from devicekit.scheduling.request import Request, SamplingParams
from devicekit.testing import Fault, LoseDevice, OutOfMemory, Raise, Slow
from tests.soak.drawing import Draw
from tests.soak.world import World

Happening = Callable[[World, Draw], bool]

# What prompts begin with: few, so that they are shared, and together too much for some of the pools.
STEMS = [
    list(range(at, at + size)) for at, size in ((1, 21), (50, 9), (200, 34), (7, 1), (400, 24), (500, 30))
]
_STOPS = [(), (), (), ("q",), ("ab", "xyz"), ("e", "th")]
_SPOTS = (
    "allocate",
    "copy",
    "empty_cache",
    "event.query",
    "event.record",
    "event.synchronize",
    "kernel:aten::index_copy_",
    "kernel:aten::index_select",
    "memory_stats",
    "stream.create",
    "synchronize",
    "*",
)


def requests_come(world: World, draw: Draw) -> bool:
    """One, several alike, or several samples of one prompt."""
    if len(world.state.requests) > 14:
        return False
    stem, samples = draw.pick(STEMS), draw.number(0, 3) == 0
    more, count, stream = draw.number(0, 9), draw.number(1, 4), draw.number(0, 1) == 1
    timeout = draw.pick((None, None, None, 2.0, 20.0))
    params = _params(draw, samples)
    for number in range(count):
        prompt = (
            [*stem, *range(300, 300 + more)]
            if samples
            else [*stem, *range(300 + number, 300 + number + more)]
        )
        room = min(world.make.pages * world.make.page_size, world.make.positions)
        world.ask(
            Request(
                f"r{world.asked}",
                np.array(prompt, np.int32),
                params,
                priority=draw.number(-1, 2),
                timeout=timeout,
                stream=stream,
                namespace=draw.pick((None, None, "tenant")) if not samples else None,
            ),
            sound=len(prompt) < room,
            post=draw.number(0, 1) == 1,
        )
    return True


def _params(draw: Draw, samples: bool) -> SamplingParams:
    plain = draw.number(0, 2) > 0
    most = draw.number(0, 24)  # none: a prompt to be cached
    return SamplingParams(
        max_new_tokens=most,
        temperature=1.0 if samples or not plain else 0.0,
        top_k=draw.number(0, 3),
        seed=None if plain else draw.number(-5, 5),
        stop=() if plain else draw.pick(_STOPS),
        stop_token_ids=() if plain else draw.pick(((), tuple(range(0, 997, 31)))),
        ignore_eos=not plain and draw.number(0, 1) == 1,
        min_new_tokens=0 if plain else min(most, draw.pick((0, 0, 0, 5))),
        frequency_penalty=0.0 if plain else draw.pick((0.0, 0.0, 0.5)),
        presence_penalty=0.0 if plain else draw.pick((0.0, 0.0, -0.25)),
        repetition_penalty=1.0 if plain else draw.pick((1.0, 1.0, 1.25)),
        logit_bias=() if plain else draw.pick(((), ((7, 2.5), (300, -1.0)))),
        logprobs=None if plain else draw.pick((None, None, 0, 2)),
    )


def senseless_requests_come(world: World, draw: Draw) -> bool:
    """Something that can never run, or an id that is in use."""
    params, prompt, timeout = SamplingParams(max_new_tokens=3), [1, 2, 3], None
    what = draw.pick(("empty", "long", "foreign", "negative", "limit", "heat", "stop", "time", "twice"))
    identity = f"r{world.asked}"
    if what == "twice":
        if not world.state.requests:
            return False
        identity = next(iter(world.state.requests))
        before = len(world.state.requests)
        book = world.books[identity]
        world.ask(Request(identity, np.array(prompt, np.int32), params), sound=False, post=False)
        if world.books[identity] is not book or len(world.state.requests) != before:
            world.wrong.append(f"{identity} took the place of another")
        return True
    prompt = {"empty": [], "long": [3] * 5000, "foreign": [997], "negative": [-1]}.get(what, prompt)
    wrong = {"limit": {"max_new_tokens": -1}, "heat": {"temperature": -1.0}, "stop": {"stop": ("",)}}
    if what in wrong:
        params = SamplingParams(**wrong[what])  # type: ignore[arg-type]
    if what == "time":
        timeout = -1.0
    request = Request(identity, np.array(prompt, np.int32), params, timeout=timeout)
    world.ask(request, sound=False, post=draw.number(0, 1) == 1)
    return True


def time_passes(world: World, draw: Draw) -> bool:
    seconds = draw.pick((0.1, 1.0, 5.0, 100.0))
    world.clock.sleep(seconds)
    if world.machine is not None:
        world.machine.clock.advance(min(seconds, 1.0))
    return True


def a_pass_fails(world: World, draw: Draw) -> bool:
    """Before or after keys and values were written, out of memory or otherwise, once or several times."""
    world.runner.faults_after_writing = draw.number(0, 1) == 1
    kind = draw.pick((torch.OutOfMemoryError, torch.OutOfMemoryError, RuntimeError))
    world.runner.faults.extend(kind("injected") for _ in range(draw.number(1, 4)))
    return True


def memory_is_short(world: World, draw: Draw) -> bool:
    world.region.failing = draw.number(0, 1) == 1
    return True


def a_participant_works(world: World, draw: Draw) -> bool:
    world.work.finish()
    world.work.unfinished = draw.number(0, 2)
    world.work.failing = draw.number(0, 4) == 4
    return True


def a_weight_cannot_be_written(world: World, draw: Draw) -> bool:
    """Some of the next copies into weights fail half-way; perhaps those that take them back as well."""
    if world.machine is not None:
        return False
    world.copy_script[:] = [draw.number(0, 2) == 0 for _ in range(draw.number(1, 6))]
    return True


def peers_answer(world: World, draw: Draw) -> bool:
    """Each that is asked for its weights sends them, ends midway, or says nothing more for now."""
    world.fetches = [one for one in world.fetches if not one.cancelled]
    for one in world.fetches:
        one.arrived, one.failed = draw.pick(((True, False), (True, False), (False, True), (False, False)))
    return bool(world.fetches)


def copies_finish(world: World, draw: Draw) -> bool:
    if world.copier is None:
        return False
    world.copier.finish(draw.pick((1, 2, None)))
    return True


def copies_fail(world: World, draw: Draw) -> bool:
    if world.copier is None:
        return False
    if draw.number(0, 3):
        world.copier.unbegun = draw.number(1, 3)
    else:
        world.copier.lose()
    return True


def the_device_fails(world: World, draw: Draw) -> bool:
    """Some use of the simulated machine goes wrong, somewhere; now and then for good."""
    if world.machine is None or world.lost:
        return False
    effect = draw.pick((OutOfMemory(), Raise(lambda: RuntimeError("injected")), Slow(0.5)))
    if draw.number(0, 14) == 14:
        effect = LoseDevice()
    spot = draw.pick(_SPOTS)
    world.inject(Fault(spot, effect, nth=draw.number(1, 12), times=draw.pick((1, 1, 3, None))))
    return True


def faults_end(world: World, draw: Draw) -> bool:
    """Whatever was failing works again, as far as it can."""
    world.calm_down()
    world.region.failing = world.work.failing = False
    world.copy_script.clear()
    if world.copier is not None:
        world.copier.unbegun = 0
    return True


HAPPENINGS: tuple[Happening, ...] = (
    *[requests_come] * 7,
    senseless_requests_come,
    *[time_passes] * 4,
    *[a_pass_fails] * 2,
    memory_is_short,
    *[a_participant_works] * 2,
    a_weight_cannot_be_written,
    peers_answer,
    *[copies_finish] * 4,
    copies_fail,
    *[the_device_fails] * 2,
    faults_end,
)
