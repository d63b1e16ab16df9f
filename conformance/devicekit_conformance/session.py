"""Judges one backend: decides requirements in order, one at a time or all, and applies the vendor's waivers."""

from __future__ import annotations

import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from devicekit_conformance.judge import Nursery, Worker
from devicekit_conformance.outcomes import Result, Status, Verdict, verdict_of
from devicekit_conformance.rulebook import DEFAULT_PROFILES, Requirement, rulebook
from devicekit_conformance.target import Target
from devicekit_conformance.waivers import Waivers

_SHARED_LIMIT = 60.0  # seconds for a requirement that shares its worker with others
_STOPPED = frozenset({Status.FAIL, Status.ERROR, Status.BLOCKED})


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
        self.excluded: dict[str, str] = {}  # id to the reason that it was left out
        if only is not None:
            self.exclude(self.rules.keys() - set(only), "left out by --only")
        self._nursery = nursery
        self._patience = patience
        self._worker: Worker | None = None
        self._raw: dict[str, Result] = {}
        self._facts: dict[str, object] | None = None

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
        return verdict_of(self.results())

    def facts(self) -> Mapping[str, object]:
        """What the backend says of itself: name, distribution, device, capabilities, hooks."""
        if self._facts is None:
            answer = self._shared().ask("facts", _SHARED_LIMIT)
            if answer.content is None:
                self._worker = None
                self._facts = {"error": answer.ending}
            else:
                self._facts = dict(answer.content)
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
        started = time.perf_counter()
        if rule.isolated is None:
            worker = self._shared()
            answer = worker.ask(rule.id, _SHARED_LIMIT * self._patience)
            if answer.content is None:
                self._worker = None  # the next one gets a new process
        else:
            worker = Worker(self._nursery, self.target, fresh=rule.fresh)
            answer = worker.ask(rule.id, rule.isolated * self._patience)
            if answer.content is not None:
                worker.kill()
        seconds = time.perf_counter() - started
        if answer.content is None:
            return replace(_result(rule, Status.FAIL, answer.ending), seconds=seconds)
        status = Status(str(answer.content["status"]))
        return replace(_result(rule, status, str(answer.content["message"])), seconds=round(seconds, 4))

    def _prerequisite(self, id: str) -> Status:
        # A prerequisite of a profile that was not asked for is decided all the same: it may explain a failure.
        self.judge(id)
        return self._raw[id].status

    def _roots(self, id: str) -> list[str]:
        """What failed in the end: the requirement itself, or what it was blocked by."""
        if self._raw[id].status is not Status.BLOCKED:
            return [id]
        return [
            root
            for earlier in rulebook()[id].after
            if self._raw[earlier].status in _STOPPED
            for root in self._roots(earlier)
        ]

    def _shared(self) -> Worker:
        if self._worker is None:
            self._worker = Worker(self._nursery, self.target)
        return self._worker


def _result(rule: Requirement, status: Status, message: str) -> Result:
    return Result(rule.id, rule.level, rule.profile, status, message)
