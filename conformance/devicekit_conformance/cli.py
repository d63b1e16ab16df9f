"""``devicekit conformance``: judge a backend, list the rule book, verify a report, repeat its run."""

from __future__ import annotations

import argparse
import contextlib
import math
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from devicekit_conformance.outcomes import EXIT_INTERRUPTED, EXIT_USAGE
from devicekit_conformance.rulebook import PROFILES, rulebook
from devicekit_conformance.target import Target, UsageError

if TYPE_CHECKING:
    from devicekit_conformance.waivers import Waivers

_OK_WHEN_INCOMPLETE = 0
_DIFFERS = 1


def main(argv: Sequence[str] | None = None) -> int:
    """Run one ``devicekit conformance`` command.

    Returns:
        0 conformant, 1 non-conformant, 2 interrupted, 4 wrong usage, 6 incomplete.
    """
    parser = _parser()
    try:
        arguments = parser.parse_args(argv)
    except SystemExit as error:  # argparse exits with 2, which is taken
        return 0 if error.code in (0, None) else EXIT_USAGE
    commands = {"run": _run, "list": _list, "verify": _verify, "rerun": _rerun}
    try:
        return commands[arguments.command](arguments)
    except UsageError as error:
        print(f"devicekit conformance: {error}", file=sys.stderr)
        return EXIT_USAGE
    except KeyboardInterrupt:
        print("devicekit conformance: interrupted", file=sys.stderr)
        return EXIT_INTERRUPTED
    except BrokenPipeError:  # the reader of `list | head` has what it wants
        sys.stderr.close()
        return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="devicekit conformance", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True, metavar="run|list|verify|rerun")
    run = commands.add_parser("run", help="judge a backend")
    _add_what_to_judge(run)
    _add_how_to_report(run)
    again = commands.add_parser(
        "rerun", help="repeat the run that a report tells of, and compare the results"
    )
    again.add_argument("report", type=Path, help="a report.json")
    again.add_argument(
        "--backend", metavar="ADDRESS", help="where the backend is now; default: as the report says"
    )
    _add_how_to_report(again)
    rules = commands.add_parser("list", help="print the rule book")
    rules.add_argument(
        "--profile", action="append", choices=list(PROFILES), help="only this one; default: all"
    )
    rules.add_argument("--markdown", action="store_true", help="as a Markdown table")
    check = commands.add_parser(
        "verify",
        help="check that a report is whole and consistent",
        description="Finds accidents and careless edits: a cut, merged or altered report, a verdict that does not "
        "follow from its results. It cannot find a forger, who can write the digest as well: for that there is "
        "the attestation of the CI run, and rerun.",
    )
    check.add_argument("report", type=Path, help="a report.json")
    return parser


def _add_what_to_judge(run: argparse.ArgumentParser) -> None:
    run.add_argument(
        "--backend",
        required=True,
        metavar="NAME|module:Class|file.py:Class",
        help="installed name, or where its class is, seen from the current folder",
    )
    run.add_argument(
        "--waivers",
        type=Path,
        metavar="TOML",
        help="known failures, each with a reason and an end; default: none",
    )
    run.add_argument(
        "--profile",
        action="append",
        choices=list(PROFILES),
        help="judge this one, and core, on which each rests; may be repeated; default: all but hardware",
    )
    run.add_argument(
        "--only",
        action="append",
        metavar="ID",
        help="judge these ids; the verdict is incomplete; default: all",
    )
    run.add_argument(
        "--probe",
        metavar="module:attr",
        help="stand-in for the suite's probe; named in the report, and the tier is experimental; "
        "default: the backend's conformance.toml, or the suite's own",
    )
    run.add_argument(
        "--allow-incomplete", action="store_true", help="exit with 0 when nothing failed; default: with 6"
    )


def _add_how_to_report(one: argparse.ArgumentParser) -> None:
    one.add_argument(
        "--report",
        dest="where",
        type=Path,
        metavar="FOLDER|FILE",
        help="write JSON, HTML, JUnit and a badge there; default: no report",
    )
    one.add_argument(
        "--patience",
        type=_positive,
        default=1.0,
        metavar="TIMES",
        help="multiply every time limit, on top of what a busy machine gets; default: 1",
    )
    one.add_argument("--quiet", action="store_true", help="print failures and the verdict only")
    one.add_argument("-v", "--verbose", action="store_true", help="print every requirement, with its id")


def _positive(text: str) -> float:
    value = float(text)
    if not (math.isfinite(value) and value > 0):
        raise argparse.ArgumentTypeError(f"must be a positive number, not {text}")
    return value


def _run(arguments: argparse.Namespace) -> int:
    from devicekit_conformance.running import with_ground
    from devicekit_conformance.waivers import Waivers

    target = Target(arguments.backend, arguments.probe).with_own_probe()
    target.check()
    waivers = Waivers.read(arguments.waivers) if arguments.waivers else Waivers()
    unknown = sorted(set(arguments.only or ()) - rulebook().keys())
    if unknown:
        raise UsageError(f"There is no requirement {', '.join(unknown)}.")
    report = _judged(target, arguments, waivers, with_ground(arguments.profile), arguments.only)
    if report["verdict"] == "incomplete" and arguments.allow_incomplete and not report["interrupted"]:
        return _OK_WHEN_INCOMPLETE
    code = report["exit_code"]
    return code if isinstance(code, int) else EXIT_USAGE


def _rerun(arguments: argparse.Namespace) -> int:
    from devicekit_conformance.rerun import differences, plan_of, surroundings

    plan = plan_of(arguments.report, arguments.backend)
    plan.target.check()
    report = _judged(plan.target, arguments, plan.waivers, plan.profiles, plan.only)
    if report["interrupted"]:
        return EXIT_INTERRUPTED
    print("\ncompared with the report:")
    for line in surroundings(plan.report, report):
        print(f"  ({line})")
    found = differences(plan.report, report)
    for line in found:
        print(f"  - {line}")
    print(f"{arguments.report}: {'came out otherwise' if found else 'came out the same'}")
    return _DIFFERS if found else 0


def _judged(
    target: Target,
    arguments: argparse.Namespace,
    waivers: Waivers,
    profiles: Sequence[str],
    only: Sequence[str] | None,
) -> Mapping[str, object]:
    from devicekit_conformance.console import Console
    from devicekit_conformance.device_check import check_device
    from devicekit_conformance.judge import Nursery, RunnerError
    from devicekit_conformance.probe_check import check_probe
    from devicekit_conformance.running import run
    from devicekit_conformance.session import Session

    console = Console(verbose=arguments.verbose, quiet=arguments.quiet)
    with Nursery() as nursery:
        with contextlib.suppress(RunnerError):  # the run says what is wrong
            if target.probe is not None:
                check_probe(nursery, target)
            check_device(nursery, target)
        session = Session(target, nursery, waivers, profiles, only, arguments.patience)
        try:
            return run(session, console, arguments.where)
        finally:
            session.close()


def _list(arguments: argparse.Namespace) -> int:
    shown = [name for name in PROFILES if not arguments.profile or name in arguments.profile]
    for profile in shown:
        rules = [rule for rule in rulebook().values() if rule.profile == profile]
        print(f"## {profile}\n\n{PROFILES[profile]}\n")
        if arguments.markdown:
            print("| id | level | requirement |\n|---|---|---|")
        for rule in sorted(rules, key=lambda rule: rule.id):
            end = " (cannot be waived)" if rule.unwaivable else ""
            if arguments.markdown:
                print(f"| {rule.id} | {rule.level.value} | {rule.sentence}{end} |")
            else:
                print(f"{rule.id}  {rule.level.value:<6} {rule.sentence}{end}")
        print()
    return 0


def _verify(arguments: argparse.Namespace) -> int:
    from devicekit_conformance.verify import LIMITS, problems_of

    problems = problems_of(arguments.report)
    for problem in problems:
        print(f"  - {problem}")
    print(f"{arguments.report}: {'does not hold' if problems else 'holds'}")
    print(f"  ({LIMITS})")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
