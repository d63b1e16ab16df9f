"""``python -m bench [SUITE...] [--json FILE]``: run benchmark suites and print their tables."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch

from bench import (
    beside,
    chat_turns,
    decode,
    dispatch,
    end_to_end,
    engine,
    http_path,
    long_context,
    observe,
    pages,
    prefix,
    releases,
    residency,
    scheduler,
    serving_steps,
    weight_updates,
)
from bench.harness import Row
from bench.report import as_curves, as_json, as_page, as_table, yardsticks

SUITES: dict[str, Callable[[], list[Row]]] = {
    "pages": pages.run,
    "prefix": prefix.run,
    "chat": chat_turns.run,
    "decode": decode.run,
    "scheduler": scheduler.run,
    "serving": serving_steps.run,
    "engine": engine.run,
    "dispatch": dispatch.run,
    "releases": releases.run,
    "observe": observe.run,
    "residency": residency.run,
    "updates": weight_updates.run,
    "end_to_end": end_to_end.run,
    "long_context": long_context.run,
    "http": http_path.run,
    "peers": beside.run,
}
# Take minutes, or an environment of their own: only when asked for.
APART = ("updates", "end_to_end", "long_context", "http", "peers")


def main(arguments: list[str] | None = None) -> int:
    """Exit status 0; 1 when a row misses its target."""
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("suites", nargs="*", metavar="SUITE", help=f"all by default: {', '.join(SUITES)}")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows to FILE as well")
    parser.add_argument("--markdown", type=Path, metavar="FILE", help="write them as a page to commit")
    chosen = parser.parse_args(arguments)
    unknown = sorted(set(chosen.suites) - set(SUITES))
    if unknown:
        parser.error(f"no suite {', '.join(unknown)}; there are {', '.join(SUITES)}")
    found: dict[str, list[Row]] = {}
    with _one_thread():
        for name in chosen.suites or [one for one in SUITES if one not in APART]:
            found[name] = SUITES[name]()
            print(f"{name}\n\n{as_table(found[name])}\n", flush=True)
    rows = [row for suite in found.values() for row in suite]
    if curves := as_curves(rows):
        print(f"{curves}\n")
    print(f"yardsticks here: {yardsticks()}")
    if chosen.json is not None:
        chosen.json.write_text(as_json(rows), encoding="utf-8")
    if chosen.markdown is not None:
        chosen.markdown.write_text(as_page(found), encoding="utf-8")
    return 1 if any(row.met is False for row in rows) else 0


@contextmanager
def _one_thread() -> Iterator[None]:
    """Threads that wait for each other on a busy machine would be measured instead of the work."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


if __name__ == "__main__":
    sys.exit(main())
