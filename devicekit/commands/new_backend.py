"""``devicekit new-backend``: a package for a backend of one's own, which works on its first day."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from pathlib import Path

from devicekit.devtools.scaffold import Start, new_backend


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="devicekit new-backend",
        description="Write a package for a backend of your own: manifest, hooks with their types, conformance "
        "test, waivers, CI workflow, README. Imports neither torch nor the vendor's software, unless --try asks.",
    )
    parser.add_argument("name", help="what users will write: a lower-case identifier such as acme")
    parser.add_argument("-o", "--output", type=Path, help="the folder to write; default: devicekit-NAME")
    starts = parser.add_mutually_exclusive_group()
    starts.add_argument(
        "--over",
        metavar="torch.NAME",
        help="stand on the vendor's module, which looks like torch.cuda; default: --simulated",
    )
    starts.add_argument(
        "--plain", action="store_true", help="required hooks to write, the others to copy from"
    )
    starts.add_argument(
        "--simulated",
        action="store_true",
        help="stand on the simulated accelerator: no hardware yet (default)",
    )
    parser.add_argument(
        "--try",
        dest="tried",
        metavar="PACKAGE",
        help="with --over: import PACKAGE, which brings the module, try the device in another process, and claim "
        "what was seen of it; default: nothing is tried",
    )
    options = parser.parse_args(arguments)
    if options.tried is not None and options.over is None:
        parser.error("--try needs the module that the package brings: --over torch.NAME")
    folder = options.output or Path(f"devicekit-{options.name}")
    start = Start.PLAIN if options.plain else Start.SIMULATED
    for path in new_backend(options.name, folder, start=start, over=options.over, tried=options.tried):
        print(f"  {path}")
    print(
        f"\nNow:  pip install -e {shlex.quote(f'{folder}[test]')} && devicekit info --device {options.name}"
    )
    return 0
