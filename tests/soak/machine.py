"""Random runs of an engine: each of fifty things that happen, with everything looked at after each, and an end."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Collection
from dataclasses import dataclass, field

from devicekit.scheduling.messages import Abort, Continue, Flush, Operation
from devicekit.weights.operations import EndWeightUpdate, ResumeMemory, UpdateWeightsFromTensor
from tests.hash_runner import make_weights
from tests.soak.drawing import Dice, Draw
from tests.soak.happenings import HAPPENINGS, faults_end, requests_come
from tests.soak.laws import check
from tests.soak.looks import COUNTED_LOOKS, LOOKS
from tests.soak.shadow import may_run
from tests.soak.stepping import step
from tests.soak.verbs import VERBS, identity
from tests.soak.world import World

LENGTH = 50
_PACE = (0, 1, 1, 1, 2)  # steps of the engine after each thing that happens
_KINDS = ("verb",) * 10 + ("happening",) * 8 + ("look",) * 2
_QUIET = ("verb",) + ("happening",) * 18 + ("look",)
_LONGEST = 4000  # steps within which everything is answered at the end


class Violation(AssertionError):
    """Something does not hold."""


@dataclass
class Counts:
    """What has happened so far."""

    runs: int = 0
    control_steps: int = 0  # things that happened: verbs, requests, faults, time; all is checked after each
    scheduler_steps: int = 0
    operations: int = 0  # each answered exactly once
    requests: int = 0  # each ended exactly once
    tokens: int = 0  # each compared with what it should be
    seen: Counter[str] = field(default_factory=Counter)  # what came of it all

    def add(self, other: Counts) -> None:
        self.runs += other.runs
        self.control_steps += other.control_steps
        self.scheduler_steps += other.scheduler_steps
        self.operations += other.operations
        self.requests += other.requests
        self.tokens += other.tokens
        self.seen.update(other.seen)


def run(seed: int, only: Collection[int] = range(LENGTH)) -> Counts:
    """The run of this seed; of its fifty things only some, if so asked.

    Raises:
        Violation: something does not hold.
    """
    logging.disable(logging.CRITICAL)  # injected faults are logged as they should be, a million times
    world = World(Dice(seed * 1000))
    when = "it was built"
    try:
        for at in range(LENGTH):
            if at in only:
                dice = Dice(seed * 1000 + at + 1)
                when = f"{happen(world, dice)}, {at + 1} of {LENGTH}"
                for _ in range(dice.pick(_PACE)):
                    step(world)
                verdict(world, when)
        when = "the end"
        end(world)
        verdict(world, when)
    except Violation:
        raise
    except Exception as error:  # through the loop that serves everybody
        wrong = "; ".join(world.wrong[:3])
        raise Violation(f"after {when}: {type(error).__name__}: {error} {wrong} ({world.make})") from error
    finally:
        world.close()
        logging.disable(logging.NOTSET)
    happened = sum(at in only for at in range(LENGTH))
    tokens = world.seen.pop("tokens", 0)
    if world.tier is not None:
        counters = world.tier.counters
        world.seen.update(host_pages_stored=counters.stored, host_pages_loaded=counters.loaded)
    return Counts(1, happened, world.steps, world.operations, world.asked, tokens, world.seen)


def happen(world: World, draw: Draw) -> str:
    """Let one thing happen; what it was."""
    kind = draw.pick(_QUIET if world.make.quiet else _KINDS)
    looks = LOOKS if world.machine is None else COUNTED_LOOKS
    if kind == "verb":
        operation = draw.pick(VERBS)(world, draw)
        world.post(operation)
        return type(operation).__name__
    act: Callable[[World, Draw], bool] = draw.pick(HAPPENINGS if kind == "happening" else looks)
    if not act(world, draw):
        act = requests_come if len(world.state.requests) < 10 else faults_end
        act(world, draw)
    world.seen[act.__name__] += 1
    return act.__name__


def verdict(world: World, when: str) -> None:
    """Raises `Violation` if anything is amiss."""
    check(world)
    if world.wrong:
        raise Violation(f"after {when}: {'; '.join(world.wrong[:4])} ({world.make})")


def end(world: World) -> None:
    """Put everything right: then every operation is answered, every request ends, and nothing is left."""
    world.runner.faults.clear()
    if world.make.cut_short:
        world.post(Abort(identity(world), all=True))
    for at in range(_LONGEST):
        if not (world.state.requests or world.posted or world.sent):
            break
        _settle(world)
        if not may_run(world.state) and at % 8 == 7:  # what was asked before has had its time
            _put_right(world)
        step(world)
    world.seen["lost_devices"] += not world.state.healthy
    if world.state.requests or world.posted:
        state = world.state
        waiting = [one.operation for one in world.posted.values()]
        gate = state.gate
        blame = f"paused {gate.paused}, holds {gate.holds}, closed by {gate.closed_by}, {state.blockers()}"
        world.wrong.append(f"never answered: {waiting} and requests {[*state.requests]}; {blame}")
        return
    _settle(world)
    step(world)
    last = Flush(identity(world))
    world.post(last)
    step(world)
    if world.state.blockers() or world.posted:
        world.wrong.append(f"an idle engine was not flushed: {world.state.blockers()}")
    if world.state.requests.weights_epoch != world.changes:
        world.wrong.append(
            f"weights epoch {world.state.requests.weights_epoch} after {world.changes} changes"
        )


def _settle(world: World) -> None:
    faults_end(world, world.draw)
    world.work.finish()
    for one in world.fetches:
        one.arrived = True
    if world.copier is not None:
        world.copier.finish()
    if world.machine is not None:
        world.machine.clock.advance(1.0)


def _put_right(world: World) -> None:
    seeds: list[Callable[[str], Operation]] = [ResumeMemory, EndWeightUpdate, _any_weights, Continue]
    for make in seeds:
        name = identity(world)
        if make is _any_weights:
            world.content[name] = dict.fromkeys((key for _, key in world.truth), 1)
        world.post(make(name))
        step(world)


def _any_weights(name: str) -> UpdateWeightsFromTensor:
    return UpdateWeightsFromTensor(name, tensors=make_weights(1), flush_cache=False)


def shrunk(seed: int) -> list[int]:
    """The fewest things of a failing run that still fail, as far as leaving some out finds them."""
    kept = [*range(LENGTH)]
    size = LENGTH // 2
    while size:
        at = 0
        while at < len(kept):
            fewer = kept[:at] + kept[at + size :]
            try:
                run(seed, frozenset(fewer))
            except Exception:
                kept = fewer
            else:
                at += size
        size //= 2
    return kept
