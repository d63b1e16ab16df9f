"""Runs the kill matrix: ``python -m devicekit_conformance.selftest [--full] [--shard 1/4] [NAME…]``.

Every faulty backend must fail the requirement that names its fault, and every requirement must be failed by some
faulty backend. Without ``--full``, only that requirement and its prerequisites are judged.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from devicekit_conformance.judge import Nursery
from devicekit_conformance.outcomes import Result, Status
from devicekit_conformance.rulebook import PROFILES, rulebook
from devicekit_conformance.selftest.catalogue import Faulty, catalogue
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target

# Judged otherwise: it needs an installed distribution, which no class in this package is.
ELSEWHERE = frozenset({"DK-LOAD-010"})
_PATIENCE = 0.5  # of a requirement's time limit: a fault that hangs need not hang for half a minute


@dataclass(frozen=True)
class Outcome:
    """What the suite said of one faulty backend."""

    name: str
    fault: str
    caught_by: str
    status: str
    message: str
    also: tuple[str, ...]  # other requirements that it failed, where they were judged
    seconds: float

    @property
    def killed(self) -> bool:
        return self.status == Status.FAIL.value


def run_one(faulty: Faulty, nursery: Nursery, full: bool = False) -> Outcome:
    """Judge one faulty backend."""
    started = time.perf_counter()
    target = Target(faulty.address, faulty.probe)
    session = Session(target, nursery, profiles=tuple(PROFILES), patience=_PATIENCE)
    try:
        if full:
            session.run()
        result = session.judge(faulty.caught_by)
        also = tuple(one.id for one in session.results() if _failed(one) and one.id != faulty.caught_by)
    finally:
        session.close()
    seconds = round(time.perf_counter() - started, 2)
    return Outcome(
        faulty.name, faulty.fault, faulty.caught_by, result.status.value, result.message, also, seconds
    )


def _failed(result: Result) -> bool:
    return result.status in (Status.FAIL, Status.ERROR)


def main(argv: Sequence[str] | None = None) -> int:
    """Run the matrix; 0 when nothing survives and every requirement catches something."""
    parser = argparse.ArgumentParser(prog="devicekit_conformance.selftest", description=__doc__)
    parser.add_argument("names", nargs="*", help="faulty backends; default: all")
    parser.add_argument("--full", action="store_true", help="judge every requirement on each")
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="every N-th, from the I-th")
    parser.add_argument(
        "--json", type=Path, metavar="FILE", help="write the matrix, messages and times included"
    )
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the matrix as a page to commit")
    arguments = parser.parse_args(argv)
    part, parts = map(int, arguments.shard.split("/"))
    everything = catalogue()
    chosen = [one for one in everything if not arguments.names or one.name in arguments.names]
    outcomes: list[Outcome] = []
    with Nursery() as nursery:
        for faulty in chosen[part - 1 :: parts]:
            outcome = run_one(faulty, nursery, arguments.full)
            outcomes.append(outcome)
            mark = "killed" if outcome.killed else f"SURVIVED ({outcome.status})"
            print(
                f"{outcome.name:<28} {outcome.caught_by:<14} {mark:<10} {outcome.message[:100]}", flush=True
            )
    survivors = [one for one in outcomes if not one.killed]
    written = {id for id, rule in rulebook().items() if not rule.every}  # the others are for derived faults
    idle = sorted(written - {one.caught_by for one in everything} - ELSEWHERE)
    print(
        f"\n{len(outcomes)} faulty backends, {len(survivors)} survived; {len(idle)} requirements catch nothing"
    )
    if idle:
        print(f"  {', '.join(idle)}")
    if arguments.json:
        rows = [asdict(one) for one in outcomes]
        document = {"faults": rows, "survivors": len(survivors), "requirements_that_catch_nothing": idle}
        arguments.json.write_text(json.dumps(document, indent=1) + "\n", encoding="utf-8")
    if arguments.markdown:
        arguments.markdown.write_text(_page(outcomes), encoding="utf-8")
    return 1 if survivors or idle else 0


def _page(outcomes: Sequence[Outcome]) -> str:
    rows = sorted(outcomes, key=lambda one: (one.caught_by, one.name))
    survived = sum(not one.killed for one in rows)
    lines = [
        "# Hand-written faults",
        "",
        "Deliberately faulty backends and hosts, and the requirement that catches each. Written by",
        "`python -m devicekit_conformance.selftest --markdown FILE`.",
        "",
        f"{len(rows)} faults, {survived} survived.",
        "",
        "| caught by | faulty backend | fault | |",
        "|---|---|---|---|",
        *(
            f"| {one.caught_by} | {one.name} | {one.fault} | {'killed' if one.killed else '**survived**'} |"
            for one in rows
        ),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
