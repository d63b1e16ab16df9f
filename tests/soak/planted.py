"""Faults planted in a copy of the code, one at a time, to see how soon the random runs find them.

python -m tests.soak.planted                  # all of them, as a table
python -m tests.soak.planted retract drain    # those whose name has one of these words in it
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

from tests.soak.machine import LENGTH
from tests.soak.planted_faults import FAULTS, Fault, canonical

_ROOT = Path(__file__).parents[2]
_RUNS = 1000  # of fifty things each, before a fault is said to have got away
_HANGING = 20.0  # seconds, of one run
_PROBE = f"""
import faulthandler, sys
import torch
from tests.soak.machine import LENGTH, run
torch.set_num_threads(1)
for seed in range({_RUNS}):
    faulthandler.dump_traceback_later({_HANGING}, exit=True)
    print(seed, flush=True)
    try:
        run(seed)
    except Exception as error:
        text = str(error).split(" (Make(")[0]
        print((seed + 1) * LENGTH, text.replace("\\n", " ")[:160], sep="\\t")
        break
"""


class Catch(NamedTuple):
    """What became of a planted fault."""

    fault: Fault
    steps: int | None  # control steps until it was found; None: it was not
    how: str


def main() -> int:
    words = sys.argv[1:]
    chosen = [one for one in FAULTS if not words or any(word in one.name for word in words)]
    print("| law | fault | control steps until found | found as |\n| --- | --- | --- | --- |", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for part in ("devicekit", "tests"):
            shutil.copytree(_ROOT / part, Path(folder, part))
        caught = [_show(_plant(fault, Path(folder))) for fault in chosen]
    missed = [one.fault.name for one in caught if one.steps is None]
    print(f"\n{len(caught) - len(missed)} of {len(caught)} found; not found: {', '.join(missed) or 'none'}")
    return int(bool(missed))


def _show(catch: Catch) -> Catch:
    how = catch.how.replace("|", "/")
    steps = "not found" if catch.steps is None else f"{catch.steps:,}"
    print(f"| {catch.fault.law} | {catch.fault.name} | {steps} | {how} |", flush=True)
    return catch


def _plant(fault: Fault, folder: Path) -> Catch:
    """Break the copy of the code in ``folder`` in one place, and run until something is amiss."""
    file = folder / "devicekit" / fault.file
    text = file.read_text()
    read = canonical(text)
    if read.count(fault.old) != 1:
        return Catch(fault, None, f"cannot be planted: {read.count(fault.old)} places in {fault.file}")
    file.write_text(read.replace(fault.old, fault.new))
    try:
        return _probe(fault, folder)
    finally:
        file.write_text(text)


def _probe(fault: Fault, folder: Path) -> Catch:
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", _PROBE],
        cwd=folder,
        # Nothing is compiled and kept: what is planted next may be as long and as old as this.
        env={**os.environ, "PYTHONPATH": str(folder), "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    last = (done.stdout.split("\n")[:-1] or ["0"])[-1]
    if "\t" in last:
        steps, _, how = last.partition("\t")
        return Catch(fault, int(steps), how)
    if done.returncode:
        hung = "Timeout" in done.stderr
        how = f"it hung for {_HANGING:g} s, and its stack was shown" if hung else "its process ended"
        return Catch(fault, (int(last) + 1) * LENGTH, how)
    return Catch(
        fault, None, f"nothing amiss in {_RUNS * 50:,} control steps, {time.monotonic() - began:.0f} s"
    )


if __name__ == "__main__":
    sys.exit(main())
