"""``devicekit new-backend``: a package for a backend of one's own, which works on its first day."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from devicekit.devtools.scaffold import new_backend


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="devicekit new-backend",
        description="Write a package for a backend of your own: manifest, every hook with its types, conformance "
        "test, waivers, CI workflow, README. It stands on the simulated accelerator, and works at once.",
    )
    parser.add_argument("name", help="what users will write: a lower-case identifier such as acme")
    parser.add_argument("-o", "--output", type=Path, help="the folder to write; default: devicekit-NAME")
    options = parser.parse_args(arguments)
    folder = options.output or Path(f"devicekit-{options.name}")
    for path in new_backend(options.name, folder):
        print(f"  {path}")
    print(f"\nNow:  pip install -e {folder}[test] && devicekit info --device {options.name}")
    return 0
