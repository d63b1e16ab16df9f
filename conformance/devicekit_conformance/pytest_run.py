"""One pytest session's conformance run: its backends' sessions, what was left out, the verdict and the reports."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

import pytest

from devicekit_conformance.device_check import check_device
from devicekit_conformance.judge import Nursery, RunnerError
from devicekit_conformance.outcomes import EXIT_CODES, EXIT_USAGE, Result, Status, Verdict, counts_of
from devicekit_conformance.probe_check import check_probe
from devicekit_conformance.publish import write_report
from devicekit_conformance.report import first_cause, make_report
from devicekit_conformance.rulebook import PROFILES, rulebook
from devicekit_conformance.running import with_ground
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target, UsageError
from devicekit_conformance.waivers import Waivers

NOT_DISTRIBUTED = (
    "Conformance reads the counters of one device from one process: run it without -n (pytest-xdist)."
)


def is_distributed(config: pytest.Config) -> bool:
    """Whether pytest-xdist shares the tests out, seen from its controller or from a worker."""
    return hasattr(config, "workerinput") or bool(getattr(config.option, "numprocesses", None))


class Run:
    """Sessions by backend address, made when they are first needed."""

    def __init__(self, config: pytest.Config) -> None:
        if is_distributed(config):
            raise pytest.UsageError(NOT_DISTRIBUTED)
        self._config = config
        self._sessions: dict[str, Session] = {}
        self._collected: dict[str, set[str]] = {}
        self._nursery: Nursery | None = None

    def session(self, target: Target, waivers: Path | None = None) -> Session:
        """The session of one backend.

        Raises:
            pytest.UsageError: there is no such backend, or the waiver file is wrong.
        """
        if target.address not in self._sessions:
            try:
                target = target.with_own_probe()
                target.check()
                listed = Waivers.read(waivers) if waivers else Waivers()
                profiles, patience = self.profiles, self._patience
                if self._nursery is None:
                    self._nursery = Nursery()
                if target.probe is not None:
                    check_probe(self._nursery, target)
                check_device(self._nursery, target)
            except (UsageError, RunnerError) as error:
                raise pytest.UsageError(str(error)) from None
            self._sessions[target.address] = Session(
                target, self._nursery, listed, profiles, patience=patience
            )
        return self._sessions[target.address]

    @property
    def _patience(self) -> float:
        text = self._config.getoption("devicekit_patience") or "1"
        try:
            if (value := float(text)) > 0:
                return value
        except ValueError:
            pass
        raise pytest.UsageError(f"--devicekit-patience is a positive number, not {text!r}.")

    @property
    def profiles(self) -> tuple[str, ...]:
        chosen = self._config.getoption("devicekit_profile")
        if unknown := sorted(set(chosen or ()) - PROFILES.keys()):
            raise pytest.UsageError(
                f"There is no profile {', '.join(unknown)}; there are {', '.join(PROFILES)}."
            )
        return with_ground(chosen)

    def open_named_backends(self) -> None:
        """Make the session of every backend on the command line.

        Raises:
            pytest.UsageError: none is named, one does not exist, or the waiver file is wrong.
        """
        addresses = self._config.getoption("devicekit_backend")
        if not addresses:
            raise pytest.UsageError(
                "Say which backend to judge: --backend NAME, or --backend package.module:Class."
            )
        waivers = self._config.getoption("devicekit_waivers")
        for address in dict.fromkeys(addresses):
            target = Target(address, self._config.getoption("devicekit_probe"))
            self.session(target, Path(waivers) if waivers else None)

    def parametrise(self, metafunc: pytest.Metafunc) -> None:
        """Give the suite's one test function an item for each backend and requirement."""
        cases = [
            pytest.param(session, id, id=f"{address}-{id}", marks=pytest.mark.devicekit(id))
            for address, session in self._sessions.items()
            for id in session.rules
        ]
        metafunc.parametrize(("dk_session", "dk_requirement"), cases)

    def claim(self, session: Session, id: str) -> None:
        """Note that a test item for this requirement was collected and survived selection."""
        self._collected.setdefault(session.target.address, set()).add(id)

    def note_selection(self, items: Sequence[pytest.Item]) -> None:
        """Exclude, visibly, every requirement that -k, --deselect or a conftest took out."""
        for item in items:
            if (found := identify(item)) is not None:
                self.claim(*found)
        for address, session in self._sessions.items():
            left_out = session.rules.keys() - self._collected.get(address, set())
            session.exclude(left_out, "deselected in this pytest run")
        try:
            # An older report never stands for a run that was killed.
            self._write(interrupted=False, begun=True)
        except UsageError as error:
            raise pytest.UsageError(str(error)) from None

    def summarise(self, terminal: pytest.TerminalReporter) -> None:
        for session in self._sessions.values():
            results = session.results()
            told = ", ".join(f"{number} {name}" for name, number in counts_of(results).items() if number)
            terminal.section(f"devicekit conformance: {session.target.address}", "=")
            for result in results:
                if result.status is Status.STALE_WAIVER or (
                    result.status is Status.FAIL and result.level.value != "MUST"
                ):
                    terminal.line(f"{result.id} {result.status.value}: {result.message}")
            if (cause := first_cause(results)) is not None:
                terminal.line(f"first cause: {cause['id']} {cause['status']}: {cause['message']}")
            terminal.line(f"{session.verdict.value.upper()} ({told})")

    def finish(self, session: pytest.Session) -> None:
        """Write the reports and give the session the exit code of the worst verdict."""
        interrupted = session.exitstatus in (pytest.ExitCode.INTERRUPTED, pytest.ExitCode.INTERNAL_ERROR)
        try:
            self._write(interrupted=interrupted)
        except UsageError as error:
            if (terminal := self._config.pluginmanager.get_plugin("terminalreporter")) is not None:
                terminal.line(str(error), red=True)
            session.exitstatus = EXIT_USAGE
            return
        verdicts = [one.verdict for one in self._sessions.values()]
        if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
            for verdict in (Verdict.NON_CONFORMANT, Verdict.INCOMPLETE):
                if verdict in verdicts:
                    session.exitstatus = EXIT_CODES[verdict]
                    return

    def _write(self, *, interrupted: bool, begun: bool = False) -> None:
        where = self._config.getoption("devicekit_report")
        if not where:
            return
        several = len(self._sessions) > 1
        for one in self._sessions.values():
            report = make_report(one, facts=not (interrupted or begun), interrupted=interrupted or begun)
            write_report(report, Path(where) / _file_name(one) if several else Path(where))

    def close(self) -> None:
        for session in self._sessions.values():
            session.close()
        if self._nursery is not None:
            self._nursery.close()


def decide(session: Session, id: str) -> None:
    """Judge a requirement, and end the running test the way its result says."""
    __tracebackhide__ = True
    if id not in session.rules:
        pytest.skip(f"the profile {rulebook()[id].profile} was not chosen")
    result = session.judge(id)
    if result.status is not Status.PASS:
        _end(result)


def _end(result: Result) -> NoReturn:
    __tracebackhide__ = True
    rule = rulebook()[result.id]
    if result.status in (Status.NOT_APPLICABLE, Status.NOT_RUN, Status.BLOCKED):
        pytest.skip(f"{result.status.value}: {result.message}")
    if result.status is Status.WAIVED:
        waiver = result.waiver or {}
        pytest.xfail(f"waived until {waiver.get('expires')}: {waiver.get('reason')} ({waiver.get('link')})")
    text = f"{result.id} {result.status.value}: {result.message}\n{rule.sentence}"
    if result.status is Status.FAIL and rule.level.value != "MUST":
        pytest.xfail(text)  # advice does not decide the verdict; the summary and the report show it
    pytest.fail(text, pytrace=False)


def identify(item: pytest.Item) -> tuple[Session, str] | None:
    """The session and requirement behind a test item, if it is one of ours."""
    mark = item.get_closest_marker("devicekit")
    if mark is None:
        return None
    callspec = getattr(item, "callspec", None)
    if callspec is not None and "dk_session" in callspec.params:
        return callspec.params["dk_session"], mark.args[0]
    owner = getattr(item, "cls", None)
    open_session = getattr(owner, "conformance_session", None)
    return None if open_session is None else (open_session(item.config), mark.args[0])


def _file_name(session: Session) -> str:
    return "".join(one if one.isalnum() or one in "._-" else "_" for one in session.target.address)
