"""Several ranks in lockstep: one set of answers, whatever differs between them."""

from __future__ import annotations

import numpy as np
import pytest

from devicekit.scheduling.batch import ForwardBatch, StepOutput
from devicekit.scheduling.messages import (
    Abort,
    Continue,
    Drain,
    Flush,
    Pause,
    PauseMode,
)
from devicekit.scheduling.request import FinishKind, Request, SamplingParams
from devicekit.weights.operations import (
    BeginWeightUpdate,
    ChecksumWeights,
    EndWeightUpdate,
    ReleaseMemory,
    ResumeMemory,
    UpdateWeightsFromTensor,
)
from tests.hash_runner import expected, make_weights, salt_of
from tests.scheduling.processes import World, Worlds
from tests.scheduling.ranked_world import Rank, Record, agree, make_rank

NEW = make_weights(5)
A, B = list(range(1, 20)), list(range(100, 130))


@pytest.fixture(params=[2, 3])
def world(request: pytest.FixtureRequest, worlds: Worlds) -> World:
    return worlds(request.param)


def every_verb(rank: Rank) -> None:
    """Requests, and every control operation at least once."""
    rank.request("r1", A)
    rank.request("r2", B, 12, stream=True)
    rank.request("never", [], 3)
    rank.scheduler.step()
    rank.do(Flush("busy"))
    rank.do(Pause("p1", PauseMode.RETRACT))
    rank.do(UpdateWeightsFromTensor("u1", tensors=NEW))
    rank.do(Continue("c1"))
    rank.run("r1")
    rank.do(Flush("later", timeout=5.0))
    rank.run("r2")
    rank.do(BeginWeightUpdate("begin"))
    rank.do(UpdateWeightsFromTensor("u2", tensors={"embed.weight": NEW["embed.weight"]}))
    rank.do(UpdateWeightsFromTensor("misfit", tensors={"nobody": NEW["embed.weight"]}))
    rank.do(EndWeightUpdate("end"))
    rank.do(ReleaseMemory("rel", backup_weights=True))
    rank.do(ResumeMemory("res"))
    rank.do(ChecksumWeights("sum"))
    rank.request("r3", A, 20)
    rank.scheduler.step()
    rank.do(Abort("a", "r3"))
    rank.request("r4", A, 5)
    rank.do(Drain("d", timeout=5.0))
    rank.do(Continue("c2"))
    rank.run("r4")


def all_verbs() -> Record:
    return make_rank().play(every_verb)


def test_every_verb_is_answered_alike_and_once_on_every_rank(world: World) -> None:
    first = agree(world.play(all_verbs))
    assert first.tokens["r4"] == expected(A, 5, salt_of(NEW))
    successes = {one.id for one in first.replies.values() if one.success}
    assert first.replies.keys() - successes == {"busy", "misfit"} | ({"end"} - successes)
    assert first.finishes["never"].kind is FinishKind.ERROR
    assert first.finishes["r3"].kind is FinishKind.ABORT
    assert first.lost is None


def skewed(skews: list[float], rates: list[float]) -> Record:
    from torch.distributed import get_rank

    rank = make_rank(skew=skews[get_rank()], rate=rates[get_rank()])

    def script(rank: Rank) -> None:
        rank.do(Pause("p", PauseMode.IN_PLACE))
        rank.request("timed", A, 30, timeout=30.0)
        rank.do(Continue("c"))
        rank.request("slow", B, 40)
        rank.scheduler.step()
        rank.do(Pause("p2", PauseMode.IN_PLACE))
        rank.do(Flush("expires", timeout=0.05))
        rank.do(Continue("c2"))
        rank.scheduler.post(Flush("waits", timeout=600.0))
        rank.run("timed", "slow")
        rank.do(Flush("after"))

    return rank.play(script)


def test_clocks_an_hour_apart_one_racing_and_one_standing_still_expire_the_same(world: World) -> None:
    skews, rates = [0.0, 3600.0, -3600.0], [1.0, 1000.0, 0.0]
    first = agree(world.play(skewed, skews, rates))
    assert not first.replies["expires"].success
    assert "Timed out" in first.replies["expires"].message
    assert first.replies["waits"].success
    assert first.finishes["timed"].kind is FinishKind.LENGTH


def paced(skews: list[float], rates: list[float]) -> Record:
    from torch.distributed import get_rank

    who = get_rank()
    rank = make_rank(
        skew=skews[who], rate=rates[who], num_pages=600, max_batch_tokens=400, max_slowdown=1.5, checked=False
    )
    rank.record.notes["chunks"] = chunks = []
    step = rank.runner.step

    def noted(batch: ForwardBatch) -> StepOutput:
        chunks.append(len(batch.input_ids))
        return step(batch)

    rank.runner.step = noted  # type: ignore[method-assign]

    def script(rank: Rank) -> None:
        for number in range(3):
            rank.request(f"runs-{number}", [number + 1, 5], 60)
        for _ in range(6):
            rank.scheduler.step()
        rank.request("long", [1 + number % 90 for number in range(2000)], 2)
        rank.run("long")

    return rank.play(script)


def test_ranks_cut_prompts_alike_by_what_passes_take_though_their_clocks_differ(world: World) -> None:
    records = world.play(paced, [0.0, 3600.0, -3600.0], [1.0, 1000.0, 0.0])
    agree(records)
    cuts = [record.notes["chunks"] for record in records]
    assert cuts.count(cuts[0]) == len(cuts), cuts


def many_that_end_at_once() -> Record:
    rank = make_rank(num_pages=40, max_running=16)

    def script(rank: Rank) -> None:
        names = [f"same-{number}" for number in range(12)]
        for number, name in enumerate(names):
            last = expected([7, number], 4, salt_of(make_weights(0)))[3]
            params = SamplingParams(max_new_tokens=6, temperature=0.0, stop_token_ids=(last,))
            prompt = np.array([7, number], np.int32)
            rank.scheduler.post(Request(name, prompt, params, timeout=100.0, stream=number % 2 == 0))
        rank.run(*names, steps=4)
        rank.request("next", list(range(1, 125)))
        rank.run("next")

    return rank.play(script)


def test_the_order_of_sets_decides_nothing(world: World) -> None:
    """Requests with conditions of their own are kept in sets, whose order differs between processes."""
    agree(world.play(many_that_end_at_once))
