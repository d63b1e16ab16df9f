"""``python -m tools.stranger``: visit every extra, keep what was seen, and write the page."""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tools.environments import ROOT
from tools.stranger.extras import EXTRAS
from tools.stranger.page import Visit, read, write
from tools.stranger.visit import consume, visit

_BASE, _TYPES = "base", "types"


def main(arguments: Sequence[str] | None = None) -> int:
    """Visit every extra; 1 if anything is wrong anywhere."""
    names = [_BASE, *filter(None, EXTRAS), _TYPES]
    parser = argparse.ArgumentParser(
        prog="python -m tools.stranger", description="Installs the built wheels as strangers do."
    )
    add = parser.add_argument
    add("--wheels", type=Path, default=ROOT / "dist", help="built wheels; default: %(default)s")
    add("--python", default=sys.executable, help="interpreter or version; default: this one")
    add("--constraint", action="append", default=[], metavar="FILE", help="as pip's -c")
    add("--only", action="append", choices=names, help="this; again for more; default: all")
    add("--results", type=Path, default=ROOT / "docs" / "results", help="default: %(default)s")
    options = parser.parse_args(arguments)
    # In the background of a script interrupts are ignored, and programs started from here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    more = [part for one in options.constraint for part in ("-c", str(Path(one).resolve()))]
    wrong = 0
    for name in options.only or names:
        seen = _visit(name, options.wheels.resolve(), options.python, more)
        file = options.results / "stranger.json"
        write(file, [*read(file), seen])
        said = "WRONG" if seen.wrong else "sound"
        print(f"{name}: {said}, {seen.seconds:.0f} s, processor {seen.cpu_seconds:.0f} s", flush=True)
        for one in seen.wrong:
            print(f"  {one}", flush=True)
        wrong += len(seen.wrong)
    return int(bool(wrong))


def _visit(name: str, wheels: Path, python: str, more: Sequence[str]) -> Visit:
    with tempfile.TemporaryDirectory() as scratch:
        where = Path(scratch) / "environment"
        if name == _TYPES:
            return consume(where, wheels, python, more)
        return visit("" if name == _BASE else name, where, wheels, python, more)


if __name__ == "__main__":
    sys.exit(main())
