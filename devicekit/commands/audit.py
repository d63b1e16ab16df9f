"""``devicekit audit``: where engine code names a vendor, and how portable it is."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from devicekit.devtools.audit.accepted import Accepted
from devicekit.devtools.audit.rules import RULES
from devicekit.devtools.audit.scan import audit


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="devicekit audit",
        description="Find code that names a vendor. Exit status 1 if there is any that is neither accepted nor "
        "waived by a comment: # devicekit: allow[RULE] and why.",
        epilog="rules: " + "; ".join(f"{rule.id} {rule.title}" for rule in RULES.values()),
    )
    parser.add_argument("paths", type=Path, nargs="+", help="Python files, or folders of them")
    parser.add_argument("--exclude", action="append", default=[], metavar="PATTERN", help="as in 'plugins/*'")
    parser.add_argument("--accepted", type=Path, metavar="FILE", help="findings that do not count")
    parser.add_argument("--accept", type=Path, metavar="FILE", help="write all findings of now to FILE")
    parser.add_argument("--format", choices=("text", "json", "sarif"), default="text")
    options = parser.parse_args(arguments)
    accepted = None if options.accepted is None else Accepted.read(options.accepted)
    report = audit(options.paths, exclude=options.exclude, accepted=accepted)
    if options.accept is not None:
        Accepted.of([*report.new, *report.accepted]).write(options.accept)
        print(f"{len(report.new) + len(report.accepted)} findings accepted in {options.accept}")
        return 0
    written = {"text": report.as_text, "json": report.as_json, "sarif": report.as_sarif}
    print(written[options.format]())
    return report.exit_status
