"""``devicekit audit``: where engine code names a vendor, what to write instead, and the writing of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from devicekit.contract.text import counted
from devicekit.devtools.audit import RULES, Accepted, Cache, audit, mend


def main(arguments: Sequence[str]) -> int:
    options = _parser().parse_args(arguments)
    if options.fix or options.unsafe_fixes or options.diff:
        return _mend(options)
    accepted = None if options.accepted is None else Accepted.read(options.accepted)
    cache = None if options.no_cache else Cache.of_user()
    report = audit(options.paths, exclude=options.exclude, accepted=accepted, cache=cache)
    if options.accept is not None:
        Accepted.of([*report.new, *report.accepted]).write(options.accept)
        print(f"{counted(len(report.new) + len(report.accepted), 'finding')} accepted in {options.accept}")
        return 0
    written = {
        "text": report.as_text,
        "json": report.as_json,
        "sarif": report.as_sarif,
        "github": report.as_github,
        "pre-commit": report.as_lines,
    }
    text = report.as_statistics() if options.statistics else written[options.format]()
    if text:
        print(text)
    return report.exit_status


def _mend(options: argparse.Namespace) -> int:
    done = mend(
        options.paths,
        exclude=options.exclude,
        unsafe=options.unsafe_fixes,
        device_name=options.device_name,
        write=not options.diff,
    )
    if options.diff:
        print("".join(done.diffs), end="")
        return 1 if done.diffs else 0
    print(done.as_text())
    return done.exit_status


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="devicekit audit",
        description="Find code that names a vendor. Exit status 1 if there is any that is neither accepted nor "
        "waived by a comment: # devicekit: allow[RULE] and why.",
        epilog="rules: " + "; ".join(f"{rule.id} {rule.title}" for rule in RULES.values()),
    )
    parser.add_argument("paths", type=Path, nargs="+", help="Python files, or folders of them")
    parser.add_argument(
        "--exclude",
        action="append",
        default=[],
        metavar="PATTERN",
        help="leave out such paths, as in 'plugins/*'; repeat for several; default: none",
    )
    parser.add_argument(
        "--accepted", type=Path, metavar="FILE", help="findings that do not count; default: none"
    )
    parser.add_argument(
        "--accept",
        type=Path,
        metavar="FILE",
        help="write all findings of now to FILE, and end; default: list them",
    )
    parser.add_argument(
        "--format",
        choices=("text", "json", "sarif", "github", "pre-commit"),
        default="text",
        help="how findings are written (default: text)",
    )
    parser.add_argument("--statistics", action="store_true", help="count by call instead of listing places")
    parser.add_argument("--no-cache", action="store_true", help="read every file again")
    fixing = parser.add_argument_group(
        "rewriting",
        "Needs LibCST: pip install 'devicekit[audit]'. Exit status 1 if something is left to do by hand; with "
        "--diff, if something would change.",
    )
    fixing.add_argument("--fix", action="store_true", help="rewrite what is certain to keep its meaning")
    fixing.add_argument("--unsafe-fixes", action="store_true", help="rewrite also what a person should check")
    fixing.add_argument("--diff", action="store_true", help="show what would change, and change nothing")
    fixing.add_argument(
        "--device-name",
        metavar="NAME",
        help="the device in new code, where it is bound: device, self.device, or module:name to import it "
        "(default: the file's own, else devicekit.current_device())",
    )
    return parser
