"""What a person sees while a backend is judged: how far it is, each failure with its reason, and the verdict."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
import time
from collections.abc import Mapping, Sequence
from typing import TextIO

from devicekit_conformance.outcomes import Result, Status
from devicekit_conformance.plain_text import plain
from devicekit_conformance.report import notices_of
from devicekit_conformance.rulebook import rulebook

_COLOURS = {"good": "32", "bad": "31;1", "open": "33", "dim": "2"}
_OF_STATUS = {
    Status.PASS: "good",
    Status.FAIL: "bad",
    Status.ERROR: "bad",
    Status.STALE_WAIVER: "bad",
    Status.WAIVED: "open",
    Status.NOT_RUN: "open",
}
_LOUD = (Status.FAIL, Status.ERROR, Status.STALE_WAIVER)
_REASON_LIMIT = 600  # characters of one reason on the screen; the report has all of it


class Console:
    """Prints to a stream that may be a terminal, a file, or closed; printing never ends a run."""

    def __init__(self, stream: TextIO | None = None, *, verbose: bool = False, quiet: bool = False) -> None:
        self._stream = sys.stdout if stream is None else stream
        self._verbose, self._quiet = verbose, quiet
        self._started = time.monotonic()
        self._terminal = bool(self._stream is not None and _is_terminal(self._stream))
        self._colour = self._terminal and "NO_COLOR" not in os.environ and os.environ.get("TERM") != "dumb"
        self._status_line = False

    def progress(self, number: int, total: int, profile: str, sentence: str) -> None:
        """Say what is judged now; on a terminal only, in one line that is written over."""
        if self._terminal and not self._quiet and not self._verbose:
            width = shutil.get_terminal_size().columns - 1
            line = f"[{number}/{total} {self._seconds()}] {profile}: {sentence}"
            self._write("\r\x1b[K" + self._painted(plain(line)[:width], "dim"), end="")
            self._status_line = True

    def result(self, number: int, total: int, result: Result) -> None:
        """Show one result: what failed always, everything with ids if asked for."""
        loud = result.status in _LOUD
        if self._verbose and not (self._quiet and not loud):
            word = self._painted(f"{result.status.value:<12}", _OF_STATUS.get(result.status, "dim"))
            reason = plain(result.message, _REASON_LIMIT).replace("\n", " ")
            self.line(f"[{number}/{total} {self._seconds()}] {result.id:<14} {word} {reason}".rstrip())
            if loud:
                self._indented(f"{result.level.value}: {rulebook()[result.id].sentence}")
        elif loud:
            binding = result.level.value == "MUST" or result.status is Status.STALE_WAIVER
            word = result.status.value.upper() if binding else f"not met ({result.level.value})"
            self.line(
                f"{self._painted(word, 'bad' if binding else 'open')}  {rulebook()[result.id].sentence}"
            )
            self._indented(f"reason: {plain(result.message, _REASON_LIMIT)}")

    def profile_ended(self, profile: str, results: Sequence[Result], number: int, total: int) -> None:
        """One line for each profile, on a terminal or not."""
        if self._quiet or self._verbose:
            return
        passed = sum(one.status is Status.PASS for one in results)
        others = {status: sum(one.status is status for one in results) for status in Status}
        told = [
            f"{count} {status.value}"
            for status, count in others.items()
            if count and status is not Status.PASS
        ]
        self.line(
            f"[{number}/{total} {self._seconds()}] {profile}: {passed} of {len(results)} passed"
            + (f" ({', '.join(told)})" if told else "")
        )

    def verdict(self, report: Mapping[str, object]) -> None:
        """The last lines: the verdict, and the first cause where it is not a good one."""
        counts, backend = report["counts"], report["backend"]
        told = ", ".join(f"{n} {name}" for name, n in counts.items() if n) if isinstance(counts, dict) else ""
        name = plain(backend.get("address")) if isinstance(backend, dict) else ""
        verdict = str(report["verdict"])
        kind = {"non-conformant": "bad", "incomplete": "open"}.get(verdict, "good")
        tier = "" if report["tier"] == "none" else f", tier {report['tier']}"
        reasons = report.get("tier_reasons")
        why = f": {'; '.join(map(str, reasons))}" if isinstance(reasons, list) and reasons else ""
        self.line("")
        if report.get("interrupted"):
            self.line(f"{self._painted('INTERRUPTED', 'bad')}: INCOMPLETE, what was judged so far is kept")
        self.line(f"{name}: {self._painted(verdict.upper(), kind)}{tier}{why} ({told})")
        cause = report.get("first_cause")
        if isinstance(cause, dict):
            id = f"{cause['id']} " if self._verbose else ""
            self._indented(f"first cause: {id}{cause['sentence']}")
            if cause["message"]:
                self._indented(f"{cause['status']}: {plain(cause['message'], _REASON_LIMIT)}")

        for notice in notices_of(report):
            self._indented(f"to the plugin's author: {plain(notice, _REASON_LIMIT)}")

    def line(self, text: str) -> None:
        """Print one line, over the status line if there is one."""
        clear = "\r\x1b[K" if self._status_line else ""
        self._status_line = False
        self._write(clear + text)

    def _indented(self, text: str) -> None:
        width = max(60, min(120, shutil.get_terminal_size((100, 24)).columns)) if self._terminal else 10_000
        self.line(textwrap.indent(textwrap.fill(" ".join(text.split()), width - 4), "    "))

    def _seconds(self) -> str:
        return f"{time.monotonic() - self._started:.0f} s"

    def _painted(self, text: str, kind: str) -> str:
        return f"\x1b[{_COLOURS[kind]}m{text}\x1b[0m" if self._colour else text

    def _write(self, text: str, end: str = "\n") -> None:
        if self._stream is None:
            return
        try:
            encoding = self._stream.encoding or "utf-8"
            self._stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + end)
            self._stream.flush()
        except (OSError, ValueError):  # its reader has gone; the run, its report and its exit code go on
            _silence(self._stream)
            self._stream = None


def _is_terminal(stream: TextIO) -> bool:
    try:
        return stream.isatty()
    except ValueError:
        return False


def _silence(stream: TextIO) -> None:
    """Point a stream whose reader has gone at nothing, so that the interpreter's last flush does not fail."""
    try:
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, stream.fileno())
        os.close(nothing)
    except (OSError, ValueError):
        pass
