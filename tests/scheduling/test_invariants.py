"""Whatever is asked in whatever order, and whatever fails: what must always hold, holds after every step.

`CONTROL_EXAMPLES` (environment) sets how many random runs are made, for longer soaks than the test suite's.
"""

from __future__ import annotations

import itertools
import logging
import os
import random
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from devicekit.opening import get_device
from devicekit.runners.hash_runner import expected, make_weights
from devicekit.scheduling.messages import (
    Abort,
    Continue,
    Drain,
    Flush,
    FlushReply,
    Operation,
    Pause,
    PauseMode,
    Refusal,
    Reply,
)
from devicekit.scheduling.request import FinishKind
from devicekit.scheduling.transaction import Settle, Transaction
from devicekit.weights.occupation import MemoryTag
from devicekit.weights.operations import (
    BeginWeightUpdate,
    ChecksumWeights,
    EndWeightUpdate,
    GetWeights,
    ReleaseMemory,
    ResumeMemory,
    UpdateWeightsFromTensor,
    UpdateWeightVersion,
)
from tests.scheduling.rig import LateCopier, Rig, Work, make_rig

STEMS = [list(range(first, first + length)) for first, length in ((1, 21), (50, 9), (200, 34))]
TAGS = st.lists(st.sampled_from([tag.value for tag in MemoryTag]), unique=True, max_size=3).map(tuple)
WISH = st.sampled_from([None, True, False])
MODES = [PauseMode.ABORT, *[PauseMode.RETRACT, PauseMode.IN_PLACE] * 3]
TIMEOUT = st.sampled_from([None, 0.0, -1.0, 0.5, 3.0, 30.0])


@dataclass
class Flaky:
    """A region that cannot always be released or resumed."""

    failing: bool = False

    def release(self) -> int | None:
        return self._act()

    def resume(self) -> int | None:
        return self._act()

    def _act(self) -> int | None:
        if self.failing:
            raise torch.OutOfMemoryError("not now")
        return None


@dataclass
class Asked:
    """A request as it was asked for, and the weights it has seen so far."""

    prompt: list[int]
    tokens: int
    salts: set[int]


class Control(RuleBasedStateMachine):
    rig: Rig

    @initialize(
        pages=st.sampled_from([12, 20, 40]),
        host=st.sampled_from([0, 0, 10, 60]),
        late=st.booleans(),
        draft=st.booleans(),
        caching=st.booleans(),
        pace=st.integers(0, 1 << 16),
    )
    def build(self, pages: int, host: int, late: bool, draft: bool, caching: bool, pace: int) -> None:
        self.pace = random.Random(pace)  # how often the engine steps between two things that happen
        self.copier = LateCopier() if late else None
        self.rig = make_rig(
            get_device("cpu"),
            num_pages=pages,
            max_running=5,
            max_batch_tokens=24,
            prefix_caching=caching or host > 0,
            draft=draft,
            host_pages=host,
            copier=self.copier,
        )
        self.flaky = Flaky()
        self.rig.weights.occupation._regions[MemoryTag.GRAPHS] = self.flaky
        self.work = Work("compilations")
        self.rig.scheduler.register(self.work.participant())
        self.asked: dict[str, Asked] = {}
        self.posted: list[Operation] = []
        self.ids = (f"op{number}" for number in itertools.count())
        self.requests_come(STEMS[pace % 3], pace % 7, 5 + pace % 20, 3)

    # -- What happens to an engine ------------------------------------------------------------------------------

    @precondition(lambda self: len(self.rig.scheduler.state.requests) < 20)
    @rule(
        stem=st.sampled_from(STEMS),
        more=st.integers(0, 9),
        tokens=st.integers(1, 30),
        count=st.integers(1, 4),
    )
    def requests_come(self, stem: list[int], more: int, tokens: int, count: int) -> None:
        for number in range(count):
            prompt = [*stem, *range(300 + number, 300 + number + more)]
            if len(prompt) > self.rig.runner.pool.num_pages * 4:
                continue
            identity = self.rig.add(prompt, tokens, stream=tokens % 2 == 0)
            self.asked[identity] = Asked(prompt, tokens, set())
        self.steps(self.pace.randint(1, 6))

    @rule(count=st.integers(1, 12))
    def steps(self, count: int) -> None:
        for _ in range(count):
            self._step()

    @precondition(lambda self: not self.rig.scheduler.state.may_run)
    @rule(count=st.integers(1, 12))
    def somebody_puts_it_right(self, count: int) -> None:
        self._put_right()
        self.steps(count)

    @rule(seconds=st.sampled_from([0.1, 1.0, 5.0, 100.0]))
    def time_passes(self, seconds: float) -> None:
        self.rig.clock.sleep(seconds)

    @rule(count=st.integers(1, 3), after=st.booleans(), memory=st.booleans())
    def runner_fails(self, count: int, after: bool, memory: bool) -> None:
        self.rig.runner.faults_after_writing = after
        kind = torch.OutOfMemoryError if memory else RuntimeError
        self.rig.runner.faults.extend(kind("injected") for _ in range(count))
        self.steps(2)

    @rule(failing=st.booleans())
    def memory_is_short(self, failing: bool) -> None:
        self.flaky.failing = failing

    @rule(begun=st.integers(0, 2))
    def a_participant_works(self, begun: int) -> None:
        self.work.finish()
        self.work.unfinished = begun

    @precondition(lambda self: getattr(self, "copier", None) is not None)
    @rule(count=st.sampled_from([1, 2, None]))
    def copies_finish(self, count: int | None) -> None:
        assert self.copier is not None
        self.copier.finish(count)

    # -- What operators do --------------------------------------------------------------------------------------

    @rule(timeout=TIMEOUT, empty=WISH)
    def flush(self, timeout: float | None, empty: bool | None) -> None:
        self._post(Flush(next(self.ids), timeout, empty))

    @rule(mode=st.sampled_from(MODES), after=st.sampled_from([None, None, 2.0]))
    def pause(self, mode: PauseMode, after: float | None) -> None:
        self._post(Pause(next(self.ids), mode, after))

    @rule(empty=WISH)
    def go_on(self, empty: bool | None) -> None:
        self._post(Continue(next(self.ids), empty))

    @rule(number=st.integers(1, 30), how=st.sampled_from(["id", "id", "prefix", "all", "nothing"]))
    def abort(self, number: int, how: str) -> None:
        chosen = {
            "id": {"request_id": f"r{number}"},
            "prefix": {"prefix": f"r{number}"},
            "all": {"all": True},
        }
        self._post(Abort(next(self.ids), **chosen.get(how, {})))  # type: ignore[arg-type]

    @rule(timeout=st.sampled_from([None, 1.0]))
    def drain(self, timeout: float | None) -> None:
        self._post(Drain(next(self.ids), timeout))

    @rule(seed=st.integers(0, 2), flush=st.booleans(), abort=st.booleans(), names=st.sets(st.integers(0, 3)))
    def update(self, seed: int, flush: bool, abort: bool, names: set[int]) -> None:
        self._post(self._update(seed, flush, abort, names))

    @rule(begin=st.booleans())
    def session(self, begin: bool) -> None:
        self._post((BeginWeightUpdate if begin else EndWeightUpdate)(next(self.ids)))

    @rule(version=st.sampled_from(["", "a", "b"]), abort=st.booleans())
    def rename(self, version: str, abort: bool) -> None:
        self._post(UpdateWeightVersion(next(self.ids), version, abort))

    @rule(tags=TAGS, release=st.booleans(), backup=st.booleans())
    def memory(self, tags: tuple[str, ...], release: bool, backup: bool) -> None:
        identity = next(self.ids)
        self._post(ReleaseMemory(identity, tags, backup) if release else ResumeMemory(identity, tags))

    @rule(read=st.booleans())
    def look(self, read: bool) -> None:
        identity = next(self.ids)
        self._post(GetWeights(identity, ("head.weight",)) if read else ChecksumWeights(identity))

    @rule(
        settle=st.sampled_from([*Settle, Settle.RETRACT, Settle.DRAIN]),
        flush=st.booleans(),
        resume=st.booleans(),
        seed=st.integers(0, 4),
    )
    def transaction(self, settle: Settle, flush: bool, resume: bool, seed: int) -> None:
        update = self._update(seed, True, False, {0, 1, 2}) if seed < 3 else None
        self._post(Transaction(next(self.ids), settle, update, flush, None, resume, timeout=3.0))

    # -- What must hold around a single operation ---------------------------------------------------------------

    @rule()
    def a_refused_flush_changes_nothing_and_a_flush_leaves_nothing(self) -> None:
        before = self.rig.snapshot()
        reply = self._now(Flush(next(self.ids)))
        kv = self.rig.scheduler.state.kv
        if reply.blockers:
            assert self.rig.snapshot() == before
            return
        assert isinstance(reply, FlushReply)
        assert kv.pages.available == kv.pages.num_pages
        assert kv.table.available == kv.table.num_rows
        assert kv.prefix is None or kv.prefix.total == 0
        assert self.rig.tier is None or self.rig.tier.tree.total == 0

    @rule(tags=st.sampled_from([("weights",), ("nonsense",), ()]))
    def a_refused_release_changes_nothing(self, tags: tuple[str, ...]) -> None:
        released = self.rig.weights.occupation.released
        before = self.rig.snapshot()
        reply = self._now(ReleaseMemory(next(self.ids), tags, True))
        if reply.refusal in (Refusal.BUSY, Refusal.INVALID):
            assert self.rig.snapshot() == before
            assert self.rig.weights.occupation.released == released

    @rule(mode=st.sampled_from(MODES))
    def states_are_entered_once(self, mode: PauseMode) -> None:
        self._now(Pause(next(self.ids), mode))
        once = self.rig.snapshot()
        self._now(Pause(next(self.ids), mode))
        assert self.rig.snapshot() == once
        self._now(Continue(next(self.ids)))
        once = self.rig.snapshot()
        self._now(Continue(next(self.ids)))
        assert self.rig.snapshot() == once

    @rule()
    def emptying_changes_no_tensor_and_no_count(self) -> None:
        before, salt = self.rig.snapshot(), self.rig.salt
        self.rig.weights.store.device.empty_cache()
        assert self.rig.snapshot() == before
        assert self.rig.salt == salt

    # -- What must always hold ----------------------------------------------------------------------------------

    @invariant()
    def every_page_and_row_has_one_owner(self) -> None:
        self.rig.check()

    @invariant()
    def what_blocks_is_really_there(self) -> None:
        for blocker in self.rig.scheduler.blockers():
            assert blocker.count > 0

    @invariant()
    def the_padding_slot_stays_zero(self) -> None:
        if MemoryTag.KV_CACHE not in self.rig.weights.occupation.released:
            assert not self.rig.runner.pool.key(1)[0].any()

    @invariant()
    def emptying_never_takes(self) -> None:
        for entry in self.rig.releases.ledger:
            assert entry.released is None or entry.released >= 0

    def teardown(self) -> None:
        """Put everything right: then every operation is answered and every request ends."""
        rig = self.rig
        rig.runner.faults.clear()
        self._put_right()
        for _ in range(100 + 60 * len(self.asked)):  # were they to run one after the other
            if not rig.scheduler.state.requests and not rig.scheduler.control.pending:
                break
            self._settle_down()
            if not rig.scheduler.state.may_run:  # something that was asked before has only now come to pass
                self._put_right()
            self._step()
        assert not rig.scheduler.state.requests
        assert [one.id for one in self.posted if one.id not in rig.replies] == []
        assert set(rig.finishes) == set(self.asked)
        self._settle_down()
        self._step()
        assert rig.scheduler.blockers() == ()
        assert self._now(Flush(next(self.ids))).success
        rig.check()

    # -- How it is done -----------------------------------------------------------------------------------------

    def _put_right(self) -> None:
        self.flaky.failing = False
        for operation in (
            ResumeMemory(next(self.ids)),
            EndWeightUpdate(next(self.ids)),
            self._update(1, False, False, {0, 1, 2}),
            Continue(next(self.ids)),
        ):
            self._settle_down()
            self._post(operation)
            self._step()

    def _settle_down(self) -> None:
        self.work.finish()
        if self.copier is not None:
            self.copier.finish()

    def _update(self, seed: int, flush: bool, abort: bool, names: set[int]) -> UpdateWeightsFromTensor:
        """Some of the weights; number 3 is a name that nobody has."""
        known = list(make_weights(seed).items())
        tensors = dict(known[one] if one < len(known) else ("nobody", torch.zeros(1)) for one in names)
        return UpdateWeightsFromTensor(
            next(self.ids), tensors=tensors, flush_cache=flush, abort_all_requests=abort
        )

    def _post(self, operation: Operation) -> None:
        self.posted.append(operation)
        self.rig.post(operation)
        self.steps(self.pace.choice((0, 0, 1, 3)))

    def _now(self, operation: Operation) -> Reply:
        """Have an operation answered between two steps."""
        with quiet():
            answer = self.rig.scheduler.control.begin(operation)
        assert isinstance(answer, Reply)
        return answer

    def _step(self) -> None:
        rig, state = self.rig, self.rig.scheduler.state
        salt = rig.salt
        might_run, steps = state.may_run, rig.runner.steps
        with quiet():
            step = rig.step()
        if not might_run and not state.may_run and not step.replies:
            assert rig.runner.steps == steps, "a forward pass ran that nothing allowed"
        salts = {salt, rig.salt}
        for identity, asked in self.asked.items():
            if identity in state.requests:
                asked.salts |= salts
        for output in step.outputs:
            if output.finish is not None:
                self.asked[output.id].salts |= salts
                self._check_end(output.id)

    def _check_end(self, identity: str) -> None:
        rig, asked = self.rig, self.asked[identity]
        got, finish, spans = rig.outputs[identity], rig.finishes[identity], rig.last[identity].spans
        if finish.kind is FinishKind.LENGTH:
            room = rig.runner.pool.num_pages * rig.runner.pool.page_size + 1
            assert len(got) == min(asked.tokens, room - len(asked.prompt))
        assert [0, *(span.end for span in spans)] == [*(span.start for span in spans), len(got)]
        if len(asked.salts) == 1:
            (salt,) = asked.salts
            assert got == expected(asked.prompt, len(got), salt)


@contextmanager
def quiet() -> Iterator[None]:
    """Injected failures are logged, as they should be; here they would only hide what matters."""
    logging.disable(logging.CRITICAL)
    try:
        yield
    finally:
        logging.disable(logging.NOTSET)


TestControl = Control.TestCase
TestControl.settings = settings(
    max_examples=int(os.environ.get("CONTROL_EXAMPLES", "100")),
    stateful_step_count=50,
    deadline=None,
    derandomize="CONTROL_EXAMPLES" not in os.environ,
    suppress_health_check=list(HealthCheck),
)
