"""Judges honest backends by everything but what takes hardware or an interpreter of its own: none may be refused.

``python -m devicekit_conformance.selftest.refusals`` judges each freedom of the contract, ``--pairs 20`` so many
that are drawn of two at once, and ``--backend PATH.py:CLASS`` another backend that is honest.
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from devicekit_conformance.outcomes import Level
from devicekit_conformance.rulebook import Requirement, rulebook
from devicekit_conformance.selftest import freedoms
from devicekit_conformance.selftest.model import PROBE
from devicekit_conformance.selftest.quick import Finding, judge_all, prepare

_PROFILES = ("core", "memory", "streams", "host", "processes")
_GOOD = frozenset({"pass", "n/a", "not-run"})


def main(argv: Sequence[str] | None = None) -> int:
    """Judge the chosen backends, print what is refused of each, and keep the results as they come."""
    arguments = _parsed(argv)
    addresses = _addresses(arguments)
    rules = _rules(arguments.profile or _PROFILES, arguments.only)
    kept: dict[str, list[str]] = {}
    if arguments.json is not None and arguments.json.is_file():
        kept = json.loads(arguments.json.read_text(encoding="utf-8"))
    prepare()
    for address in addresses:
        if address in kept:
            continue
        started = time.monotonic()
        findings = list(judge_all(address, arguments.probe, rules))
        kept[address] = _refused(findings)
        counts = Counter(one.status for one in findings)
        told = ", ".join(f"{number} {status}" for status, number in sorted(counts.items()))
        print(f"{address.rpartition(':')[2]}: {told}; {time.monotonic() - started:.0f} s", flush=True)
        for line in kept[address]:
            print(f"  {line}", flush=True)
        if arguments.json is not None:
            arguments.json.write_text(json.dumps(kept, indent=1), encoding="utf-8")
    bad = [address for address in addresses if kept[address]]
    print(f"{len(addresses) - len(bad)} of {len(addresses)} honest backends were not refused")
    return 1 if bad else 0


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="devicekit_conformance.selftest.refusals", description=__doc__)
    parser.add_argument("names", nargs="*", help="of freedoms, or of two with __ between them; default: each")
    parser.add_argument("--pairs", type=int, default=0, metavar="N", help="so many pairs, drawn, instead")
    parser.add_argument("--seed", type=int, default=0, help="of the draw")
    parser.add_argument("--backend", nargs="+", metavar="ADDRESS", help="these instead")
    parser.add_argument("--probe", default=PROBE, help="of the backends; the simulator's by default")
    parser.add_argument("--profile", action="append", help="default: all below the engine")
    parser.add_argument("--only", nargs="+", default=[""], metavar="ID", help="beginnings of requirements")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, and read on from them")
    return parser.parse_args(argv)


def _addresses(arguments: argparse.Namespace) -> list[str]:
    if arguments.backend:
        return list(arguments.backend)
    names = arguments.names or list(freedoms.FREEDOMS)
    if arguments.pairs:
        print(f"seed {arguments.seed}")
        pairs = [name for name in freedoms.honest_names() if "__" in name]
        names = random.Random(arguments.seed).sample(pairs, arguments.pairs)
    return [f"{freedoms.__name__}:{name}" for name in names]


def _rules(profiles: Sequence[str], only: Sequence[str]) -> list[Requirement]:
    return [
        rule
        for rule in rulebook().values()
        if rule.profile in profiles and not rule.fresh and rule.id.startswith(tuple(only))
    ]


def _refused(findings: Sequence[Finding]) -> list[str]:
    return [
        f"{one.requirement} {one.status}: {one.message}"
        for one in findings
        if one.status not in _GOOD and rulebook()[one.requirement].level is not Level.SHOULD
    ]


if __name__ == "__main__":
    sys.exit(main())
