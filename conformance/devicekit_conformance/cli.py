"""``devicekit conformance``: run the suite on a backend, list the rule book, verify a report."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from devicekit_conformance.outcomes import EXIT_INTERRUPTED, EXIT_USAGE, Result, Status
from devicekit_conformance.rulebook import DEFAULT_PROFILES, PROFILES, rulebook
from devicekit_conformance.target import Target, UsageError

_OK_WHEN_INCOMPLETE = 0


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
    try:
        if arguments.command == "run":
            return _run(arguments)
        if arguments.command == "list":
            return _list(arguments)
        return _verify(arguments)
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
    commands = parser.add_subparsers(dest="command", required=True, metavar="run|list|verify")
    run = commands.add_parser("run", help="judge a backend")
    run.add_argument(
        "--backend", required=True, metavar="NAME|module:attr", help="installed name, or where its class is"
    )
    run.add_argument("--report", type=Path, metavar="FOLDER|FILE", help="write JSON, HTML, JUnit and a badge")
    run.add_argument(
        "--waivers", type=Path, metavar="TOML", help="known failures, each with a reason and an end"
    )
    run.add_argument("--profile", action="append", choices=list(PROFILES), help="default: all but hardware")
    run.add_argument(
        "--only", action="append", metavar="ID", help="judge these ids; the verdict is incomplete"
    )
    run.add_argument(
        "--probe", metavar="module:attr", help="stand-in for the suite's probe; named in the report"
    )
    run.add_argument("--allow-incomplete", action="store_true", help="exit with 0 when nothing failed")
    run.add_argument("--quiet", action="store_true", help="print failures and the verdict only")
    rules = commands.add_parser("list", help="print the rule book")
    rules.add_argument("--profile", action="append", choices=list(PROFILES))
    rules.add_argument("--markdown", action="store_true", help="as a Markdown table")
    check = commands.add_parser("verify", help="check that a report is what the suite wrote")
    check.add_argument("report", type=Path)
    return parser


def _run(arguments: argparse.Namespace) -> int:
    from devicekit_conformance.judge import Nursery
    from devicekit_conformance.publish import write_report
    from devicekit_conformance.report import make_report
    from devicekit_conformance.session import Session
    from devicekit_conformance.waivers import Waivers

    target = Target(arguments.backend, arguments.probe)
    target.check()
    waivers = Waivers.read(arguments.waivers) if arguments.waivers else Waivers()
    unknown = sorted(set(arguments.only or ()) - rulebook().keys())
    if unknown:
        raise UsageError(f"There is no requirement {', '.join(unknown)}.")
    with Nursery() as nursery:
        profiles = _in_order(arguments.profile)
        session = Session(target, nursery, waivers, profiles, arguments.only)
        try:
            for id in session.rules:
                if id not in session.excluded:
                    _show(session.judge(id), arguments.quiet)
            report = make_report(session)
        finally:
            session.close()
    _summarise(report)
    if arguments.report:
        for path in write_report(report, arguments.report):
            print(f"  wrote {path}")
    if report["verdict"] == "incomplete" and arguments.allow_incomplete:
        return _OK_WHEN_INCOMPLETE
    code = report["exit_code"]
    return code if isinstance(code, int) else EXIT_USAGE


def _in_order(chosen: Sequence[str] | None) -> tuple[str, ...]:
    return DEFAULT_PROFILES if not chosen else tuple(name for name in PROFILES if name in chosen)


def _show(result: Result, quiet: bool) -> None:
    if result.status is Status.BLOCKED:
        return  # the summary counts them; each would only repeat the failure that is already shown
    loud = result.status in (Status.FAIL, Status.ERROR, Status.STALE_WAIVER)
    if loud or not quiet:
        sentence = rulebook()[result.id].sentence if loud else ""
        print(f"{result.id:<13} {result.status.value:<12} {result.message or ''}".rstrip())
        if sentence:
            print(f"{'':13} {result.level.value}: {sentence}")
        sys.stdout.flush()


def _summarise(report: dict[str, object]) -> None:
    counts, backend = report["counts"], report["backend"]
    told = ", ".join(f"{n} {name}" for name, n in counts.items() if n) if isinstance(counts, dict) else ""
    name = backend["address"] if isinstance(backend, dict) else ""
    tier = "" if report["tier"] == "none" else f", tier {report['tier']}"
    print(f"\n{name}: {str(report['verdict']).upper()}{tier} ({told})")


def _list(arguments: argparse.Namespace) -> int:
    shown = _in_order(arguments.profile) if arguments.profile else tuple(PROFILES)
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
    from devicekit_conformance.verify import problems_of

    problems = problems_of(arguments.report)
    for problem in problems:
        print(f"  - {problem}")
    print(f"{arguments.report}: {'does not hold' if problems else 'holds'}")
    return 1 if problems else 0


if __name__ == "__main__":
    sys.exit(main())
