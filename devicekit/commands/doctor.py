"""``devicekit doctor``: what is wrong with this installation, and what to do about it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from devicekit.commands.arguments import seconds
from devicekit.commands.doctor_text import as_text, without_home
from devicekit.devtools.doctor.diagnosis import diagnose


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="devicekit doctor",
        description="Examine this installation, each part in a process of its own, and say what is wrong. Works "
        "where `import torch` fails. Exit status 1 if something serious is wrong.",
    )
    parser.add_argument("--json", action="store_true", help="JSON instead of text")
    parser.add_argument(
        "--conformance", type=Path, metavar="REPORT", help="show this report's tier, too; default: none"
    )
    parser.add_argument(
        "--timeout",
        type=seconds,
        default=120.0,
        metavar="SECONDS",
        help="seconds that each examination may take; default: %(default)g",
    )
    parser.add_argument("--redact", action="store_true", help="write ~ for the home folder")
    options = parser.parse_args(arguments)
    diagnosis = diagnose(conformance=options.conformance, timeout=options.timeout)
    text = diagnosis.as_json() if options.json else as_text(diagnosis)
    print(without_home(text) if options.redact else text)
    return diagnosis.exit_status
