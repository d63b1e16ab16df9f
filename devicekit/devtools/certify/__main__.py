"""``python -m devicekit.devtools.certify``: what a device does, part by part."""

from __future__ import annotations

import argparse
import shutil
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from devicekit.contract.errors import DeviceKitError
from devicekit.devtools.certify import pages
from devicekit.devtools.certify.checkout import search_path
from devicekit.devtools.certify.part import PARTS
from devicekit.devtools.certify.record import Outcome, Status
from devicekit.devtools.certify.running import Plan, run
from devicekit.devtools.certify.surroundings import Surroundings

_MARKS = {Status.PASSED: "passed", Status.FAILED: "FAILED", Status.SKIPPED: "skipped"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the parts and write the pages; returns 0 if none failed, 1 if one did, 2 for wrong usage."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    options = _parser().parse_args(given)
    names = [part.name for part in PARTS]
    unknown = sorted({*options.skip, *options.only} - set(names))
    if unknown:
        print(
            f"certify: there is no part {', '.join(unknown)}; there are {', '.join(names)}", file=sys.stderr
        )
        return 2
    scratch = Path(tempfile.mkdtemp(prefix="devicekit-certify-"))
    try:
        plan = Plan(
            parts=PARTS,
            spec=options.device,
            simulate=options.simulate,
            seconds=options.seconds,
            patience=options.patience,
            skip=frozenset(options.skip) | (frozenset(names[1:]) - set(options.only or names)),
            path=search_path(options.plugins, scratch / "metadata"),
            scratch=scratch,
        )
        options.out.mkdir(parents=True, exist_ok=True)
        return _run(plan, pages.Document(Surroundings.now(given), rehearsal=options.rehearsal), options)
    except (DeviceKitError, OSError) as error:
        print(f"certify: {error}", file=sys.stderr)
        return 2
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _run(plan: Plan, document: pages.Document, options: argparse.Namespace) -> int:
    sentences = {part.name: part.sentence for part in plan.parts}
    written: list[Path] = []
    for outcome in run(plan):
        document.outcomes.append(outcome)
        written = pages.write(document, options.out, options.name)
        _print(outcome, sentences[outcome.part])
    for report in sorted(plan.scratch.glob("conformance-report/report.*")):
        if options.keep_report:
            shutil.copy2(report, options.out / f"{options.name}-conformance{report.suffix}")
    print(f"\n{document.summary}")
    print("\n".join(f"  {path}" for path in written))
    return 1 if any(one.status is Status.FAILED for one in document.outcomes) else 0


def _print(outcome: Outcome, sentence: str) -> None:
    seconds = "" if outcome.seconds is None else f"{outcome.seconds:6.1f} s"
    print(
        f"{_MARKS.get(outcome.status, '?'):<8} {outcome.part:<14} {seconds:>9}  {outcome.reason or sentence}",
        flush=True,
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m devicekit.devtools.certify",
        description="Put a device to the test in a few minutes, without network. Each part runs in a process of "
        "its own under its own time limit; JSON, a Markdown and an HTML page are written after each.",
        epilog="parts: " + "; ".join(f"{part.name} ({part.limit:.0f} s): {part.sentence}" for part in PARTS),
    )
    parser.add_argument("--device", help="backend, or backend:index; default: the best of this machine")
    parser.add_argument("--simulate", action="store_true", help="on the simulated accelerator")
    parser.add_argument(
        "--plugins",
        type=Path,
        action="append",
        default=[],
        metavar="DIR",
        help="a project, or a folder of projects, that is used without being installed: its entry points are made "
        "known to this run; may be repeated",
    )
    parser.add_argument(
        "--only",
        action="append",
        default=[],
        metavar="PART",
        help="run this one, and info, which names the device; may be repeated",
    )
    parser.add_argument(
        "--skip", action="append", default=[], metavar="PART", help="leave this one out; may be repeated"
    )
    parser.add_argument(
        "--seconds", type=_positive, default=480.0, help="for everything together; default: 480"
    )
    parser.add_argument(
        "--patience", type=_positive, default=1.0, metavar="TIMES", help="multiply every limit; default: 1"
    )
    parser.add_argument("--out", type=Path, default=Path("docs/results"), help="default: docs/results")
    parser.add_argument("--name", default="device", help="of the files written; default: device")
    parser.add_argument(
        "--keep-report", action="store_true", help="keep the conformance suite's own report beside them"
    )
    parser.add_argument(
        "--rehearsal", action="store_true", help="say on every page that this shows the script, not a device"
    )
    return parser


def _positive(text: str) -> float:
    value = float(text)
    if not 0 < value < 1e6:
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text}")
    return value


if __name__ == "__main__":
    # So that what it started ends with it.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    sys.exit(main())
