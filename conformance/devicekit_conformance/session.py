"""Judges one backend: decides requirements in order, one at a time or all, and applies the vendor's waivers."""

from __future__ import annotations

import time
import uuid
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from devicekit_conformance.judge import HANGS, Answer, Nursery, RunnerError, Worker
from devicekit_conformance.outcomes import Result, Status, Verdict, verdict_of
from devicekit_conformance.plain_text import told
from devicekit_conformance.rulebook import DEFAULT_PROFILES, Requirement, rulebook
from devicekit_conformance.target import Target
from devicekit_conformance.waivers import Waivers
from devicekit_conformance.worker import LEFT_BEHIND

_SHARED_LIMIT = 60.0  # seconds for a requirement that shares its worker with others
_HURRIED_LIMIT = 8.0  # the same, once a hook is known to hang
_STOPPED = frozenset({Status.FAIL, Status.ERROR, Status.BLOCKED})
_FAILED = frozenset({Status.FAIL, Status.ERROR})
_GUARDS_THE_SUITE = "DK-LOAD-009"  # the requirement that an import which changes the suite fails


class Session:
    """The results of one backend, growing as they are asked for.

    Args:
        target: the backend.
        nursery: where workers come from.
        waivers: the vendor's.
        profiles: which profiles are judged.
        only: ids to judge; prerequisites are judged with them. The others are reported as not run.
        patience: scales every time limit, for machines that are slow or faults that are known.
    """

    def __init__(
        self,
        target: Target,
        nursery: Nursery,
        waivers: Waivers | None = None,
        profiles: Sequence[str] = DEFAULT_PROFILES,
        only: Collection[str] | None = None,
        patience: float = 1.0,
    ) -> None:
        self.target = target
        self.profiles = tuple(profiles)
        self.waivers = waivers or Waivers()
        self.rules: Mapping[str, Requirement] = {
            id: rule for id, rule in rulebook().items() if rule.profile in self.profiles
        }
        self.started = time.time()
        self.run_id = str(uuid.uuid4())
        self.only = None if only is None else sorted(only)
        self.excluded: dict[str, str] = {}  # id to the reason that it was left out
        if only is not None:
            self.exclude(self.rules.keys() - set(only), "left out by --only")
        self._nursery = nursery
        self._patience = patience
        self._worker: Worker | None = None
        self._raw: dict[str, Result] = {}
        self._causes: dict[str, str] = {}  # what went wrong in the backend, to the requirement that showed it
        self._same: dict[str, str] = {}  # blocked for the same cause, to the requirement that failed for it
        self._deaths = nursery.deaths  # of the fork server, as far as they are accounted for
        self._broken: str | None = None  # why the suite itself cannot go on
        self._facts: Mapping[str, object] | None = None

    def exclude(self, ids: Collection[str], reason: str) -> None:
        """Leave requirements out. They are reported as not run, which a verdict cannot be good with."""
        self.excluded.update(dict.fromkeys(ids, reason))

    def run(self) -> list[Result]:
        """Judge every requirement that is not left out."""
        for id in self.rules:
            if id not in self.excluded:
                self.judge(id)
        return self.results()

    def judge(self, id: str) -> Result:
        """Decide one requirement, after its prerequisites, once."""
        if id not in self._raw:
            self._raw[id] = self._decide(rulebook()[id])
        return self.waivers.apply(self._raw[id])

    def results(self) -> list[Result]:
        """Every requirement of the chosen profiles in order, those that did not run included."""
        return [
            self.waivers.apply(self._raw[id])
            if id in self._raw and id not in self.excluded
            else _result(rule, Status.NOT_RUN, self.excluded.get(id, "the run ended before it"))
            for id, rule in self.rules.items()
        ]

    @property
    def verdict(self) -> Verdict:
        return verdict_of(self.results(), self.profiles)

    def facts(self) -> Mapping[str, object]:
        """What the backend says of itself: name, distribution, device, capabilities, hooks."""
        if self._facts is None:
            try:
                worker = self._shared()
            except RunnerError as error:
                self._facts = {"error": str(error)}
            else:
                self._facts = worker.facts(_SHARED_LIMIT * self._patience)
                if "error" in self._facts:
                    self.close()
        return self._facts

    def close(self) -> None:
        """End the worker. Results stay."""
        if self._worker is not None:
            self._worker.kill()
            self._worker = None

    def _decide(self, rule: Requirement) -> Result:
        stopped = [earlier for earlier in rule.after if self._prerequisite(earlier) in _STOPPED]
        if stopped:
            roots = dict.fromkeys(root for earlier in stopped for root in self._roots(earlier))
            return _result(rule, Status.BLOCKED, f"{', '.join(roots)} failed")
        if self._broken is not None:
            return _result(rule, Status.BLOCKED, self._broken)
        started = time.perf_counter()
        try:
            answer = self._asked(rule, hurried=self._hung)
            if self._hung and answer.hung and answer.cause not in self._causes:
                answer = self._asked(rule, hurried=False)  # it hangs elsewhere, or it only took its time
        except RunnerError as error:
            self._broken = f"the suite could not go on: {error}"
            return _result(rule, Status.ERROR, self._broken)
        except Exception as error:  # no descriptors or no memory: a result all the same
            self._worker = None
            return _result(rule, Status.ERROR, f"the suite could not judge it: {told(error)}")
        found = replace(
            _result(rule, answer.status, answer.message), seconds=round(time.perf_counter() - started, 4)
        )
        return self._one_failure_a_cause(self._in_an_unchanged_suite(found, answer), answer.cause)

    @property
    def _hung(self) -> bool:
        """Whether a hook is known to hang: then the next that hangs in it is not waited for as long."""
        return any(cause.startswith(HANGS) for cause in self._causes)

    def _asked(self, rule: Requirement, *, hurried: bool) -> Answer:
        limit = (_SHARED_LIMIT if rule.isolated is None else rule.isolated) * self._patience
        limit = min(limit, _HURRIED_LIMIT * self._patience) if hurried else limit
        if rule.isolated is None:
            worker = self._shared()
            answer = worker.judge(rule.id, limit)
            if not answer.alive or answer.changed or answer.cause == LEFT_BEHIND:
                worker.kill()
                self._worker = None  # the next one gets a new process
        else:
            worker = Worker(self._nursery, self.target, fresh=rule.fresh)
            try:
                answer = worker.judge(rule.id, limit)
            finally:
                left = worker.kill().own_session
            if left and answer.status is Status.PASS:
                text = f"it left processes in sessions of their own: {', '.join(left)}"
                answer = replace(answer, status=Status.FAIL, message=text, cause=LEFT_BEHIND)
        deaths = self._nursery.deaths + (not self._nursery.alive)
        if deaths > self._deaths and answer.status is not Status.FAIL:
            text = "it, or what was judged just before, ended the process that the suite's workers are forked from"
            answer = replace(answer, status=Status.FAIL, message=text, cause="fork server ended")
        self._deaths = deaths
        return answer

    def _in_an_unchanged_suite(self, found: Result, answer: Answer) -> Result:
        """The result, unless the backend has replaced what it rests on: then there is none but a failure.

        An import that does so fails its own requirement, and leaves the others of loading to say what they see.
        """
        if not answer.changed or found.status in _FAILED or found.id.startswith("DK-LOAD-"):
            own = answer.changed and found.id == _GUARDS_THE_SUITE
            return replace(found, status=Status.FAIL, message=_changed(answer)) if own else found
        if found.id != _GUARDS_THE_SUITE and self._prerequisite(_GUARDS_THE_SUITE) in _STOPPED:
            return replace(found, status=Status.BLOCKED, message=f"{_GUARDS_THE_SUITE} failed")
        return replace(found, status=Status.FAIL, message=_changed(answer))

    def _one_failure_a_cause(self, found: Result, cause: str) -> Result:
        """Blocked, where an earlier requirement failed for the same cause, unless this one has its own waiver."""
        if found.status not in _FAILED or not cause or found.id in self.waivers.by_id:
            return found
        first = self._causes.setdefault(cause, found.id)
        if first == found.id or first not in self.rules:
            return found
        self._same[found.id] = first
        return replace(
            found, status=Status.BLOCKED, message=f"{first} failed for the same cause: {found.message}"
        )

    def _prerequisite(self, id: str) -> Status:
        # A prerequisite of a profile that was not asked for is decided all the same: it may explain a failure.
        self.judge(id)
        return self._raw[id].status

    def _roots(self, id: str) -> list[str]:
        """What failed in the end: the requirement itself, or what it was blocked by."""
        if self._raw[id].status is not Status.BLOCKED:
            return [id]
        if id in self._same:
            return [self._same[id]]
        earlier = [one for one in rulebook()[id].after if self._raw[one].status in _STOPPED]
        return [root for one in earlier for root in self._roots(one)] or [id]

    def _shared(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self._nursery, self.target)
        return self._worker


def _changed(answer: Answer) -> str:
    return f"running it changed what the suite rests on: {answer.changed}"


def _result(rule: Requirement, status: Status, message: str) -> Result:
    return Result(rule.id, rule.level, rule.profile, status, message)
