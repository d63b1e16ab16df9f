"""One run of the suite as a command does it: judged in order, shown as it goes, reported whatever happens."""

from __future__ import annotations

import contextlib
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import FrameType

from devicekit_conformance.console import Console
from devicekit_conformance.outcomes import GROUND
from devicekit_conformance.publish import write_report
from devicekit_conformance.report import Report, make_report
from devicekit_conformance.rulebook import DEFAULT_PROFILES, PROFILES
from devicekit_conformance.session import Session

_SAVE_EVERY = 20.0  # seconds between reports of a run that is not finished


def with_ground(chosen: Sequence[str] | None) -> tuple[str, ...]:
    """The profiles to judge, in order: those chosen, and the one that each rests on; default: all but hardware."""
    if not chosen:
        return DEFAULT_PROFILES
    return tuple(name for name in PROFILES if name in chosen or name == GROUND)


def run(session: Session, console: Console, where: Path | None) -> Report:
    """Judge what is not left out, and write the report to ``where``.

    A report is there from the first second and says "incomplete" until the run has ended, so that an older one
    never stands for a run that was killed. Ctrl-C and SIGTERM end the run; what was judged is kept.

    Raises:
        UsageError: the report cannot be written.
    """
    interrupted = False
    with _terminated_is_interrupted():
        try:
            if where is not None:
                write_report(make_report(session, facts=False, interrupted=True), where)
            _judge_all(session, console, where)
        except KeyboardInterrupt:
            interrupted = True
    with _not_interrupted():
        report = make_report(session, facts=not interrupted, interrupted=interrupted)
        console.verdict(report)
        if where is not None:
            for path in write_report(report, where):
                console.line(f"  wrote {path}")
    return report


def _judge_all(session: Session, console: Console, where: Path | None) -> None:
    wanted = [id for id in session.rules if id not in session.excluded]
    saved = time.monotonic()
    for number, id in enumerate(wanted, 1):
        rule = session.rules[id]
        console.progress(number, len(wanted), rule.profile, rule.sentence)
        console.result(number, len(wanted), session.judge(id))
        following = session.rules[wanted[number]].profile if number < len(wanted) else None
        if following != rule.profile:
            done = [
                session.judge(one) for one in wanted[:number] if session.rules[one].profile == rule.profile
            ]
            console.profile_ended(rule.profile, done, number, len(wanted))
        if where is not None and time.monotonic() - saved > _SAVE_EVERY:
            write_report(make_report(session, facts=False, interrupted=True), where)
            saved = time.monotonic()


@contextlib.contextmanager
def _terminated_is_interrupted() -> Iterator[None]:
    """Inside, SIGTERM and SIGHUP end the run as Ctrl-C does."""

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    with _handling((signal.SIGTERM, signal.SIGHUP), interrupt):
        yield


@contextlib.contextmanager
def _not_interrupted() -> Iterator[None]:
    """Inside, nobody's second Ctrl-C stops the report from being written."""
    with _handling((signal.SIGINT, signal.SIGTERM, signal.SIGHUP), signal.SIG_IGN):
        yield


@contextlib.contextmanager
def _handling(numbers: Sequence[signal.Signals], handler: object) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may handle signals
        return
    before = {number: signal.signal(number, handler) for number in numbers}  # type: ignore[arg-type]  # a handler
    try:
        yield
    finally:
        for number, one in before.items():
            signal.signal(number, one)
