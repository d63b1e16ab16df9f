"""Runs the fault model, or a part of it, and counts what is caught."""

from __future__ import annotations

import argparse
import json
import random
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from devicekit_conformance.selftest.model import PROBE, Derived, derived, is_held_out
from devicekit_conformance.selftest.page import page
from devicekit_conformance.selftest.quick import Finding, judge, prepare

FIRST_SIGHT = Path(__file__).parent / "first_sight.json"  # what was measured before survivors were looked at


def main(argv: Sequence[str] | None = None) -> int:
    """Judge the chosen derived backends, print those that survive, and write what was asked for."""
    arguments = _parsed(argv)
    if arguments.merge:
        rows = [row for path in arguments.merge for row in json.loads(path.read_text(encoding="utf-8"))]
    else:
        prepare()
        rows = _judged(_chosen(arguments), arguments.json)
    if arguments.json:
        arguments.json.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    if arguments.markdown:
        seen = json.loads(FIRST_SIGHT.read_text(encoding="utf-8")) if FIRST_SIGHT.is_file() else {}
        arguments.markdown.write_text(page(rows, len(derived()), seen, arguments.note), encoding="utf-8")
    caught = sum(row["status"] == "fail" for row in rows)
    spent = sum(row["seconds"] for row in rows)
    rate = 100 * caught / max(1, len(rows))
    print(f"{caught} of {len(rows)} caught ({rate:.1f} %), {spent:.0f} s of processor time")
    return 0 if caught == len(rows) else 1


def _parsed(argv: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="devicekit_conformance.selftest.matrix", description=__doc__)
    parser.add_argument("names", nargs="*", help="parts of names; default: all")
    parser.add_argument(
        "--part", choices=("seen", "unseen", "all"), default="all", help="by the held-out operators"
    )
    parser.add_argument("--shard", default="1/1", metavar="I/N", help="every N-th, from the I-th")
    parser.add_argument(
        "--sample", type=int, default=0, metavar="N", help="N of them, as many of each family"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the sample")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the results, and read on from them")
    parser.add_argument(
        "--merge", type=Path, nargs="+", metavar="FILE", help="results of shards, instead of a run"
    )
    parser.add_argument("--note", default="", help="for the page: which part was judged, and how")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write the page to commit")
    return parser.parse_args(argv)


def _chosen(arguments: argparse.Namespace) -> list[Derived]:
    chosen = [
        one
        for one in derived().values()
        if (not arguments.names or any(part in one.name for part in arguments.names))
        and (arguments.part == "all" or is_held_out(one.operator.name) == (arguments.part == "unseen"))
    ]
    if arguments.sample:
        print(f"seed {arguments.seed}")
        chosen = _stratified(chosen, arguments.sample, random.Random(arguments.seed))
    part, parts = map(int, arguments.shard.split("/"))
    return chosen[part - 1 :: parts]


def _stratified(every: list[Derived], size: int, source: random.Random) -> list[Derived]:
    """So many of them, taken from each operator in turn."""
    by_operator: dict[str, list[Derived]] = defaultdict(list)
    for one in every:
        by_operator[one.operator.name].append(one)
    queues = list(by_operator.values())
    source.shuffle(queues)
    for queue in queues:
        source.shuffle(queue)
    found: list[Derived] = []
    while queues and len(found) < size:
        queues = [queue for queue in queues if queue]
        found += [queue.pop() for queue in queues]
    return found[:size]


def _judged(chosen: Sequence[Derived], kept: Path | None) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    if kept is not None and kept.is_file():
        rows = json.loads(kept.read_text(encoding="utf-8"))
    done = {row["name"] for row in rows}
    for one in chosen:
        if one.name in done:
            continue
        found = judge(one.address, PROBE, one.fault.hook)
        rows.append(_row(one, found))
        if not found.caught:
            print(
                f"SURVIVED {one.name} [{found.status}] {found.requirement} {found.message[:120]}", flush=True
            )
        if kept is not None and len(rows) % 5 == 0:
            kept.write_text(json.dumps(rows, indent=1), encoding="utf-8")
    return rows


def _row(one: Derived, found: Finding) -> dict[str, Any]:
    return {
        "name": one.name,
        "operator": one.operator.name,
        "family": one.operator.family,
        "hook": one.fault.hook,
        "held_out": is_held_out(one.operator.name),
        "status": found.status,
        "by": found.requirement,
        "message": found.message,
        "seconds": found.seconds,
    }


if __name__ == "__main__":
    sys.exit(main())
