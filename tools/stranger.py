"""What somebody gets who installs the built wheels and nothing else: ``make stranger``, after ``make dist``.

Each extra is installed alone into a clean environment. Every command of the program is then run: it works, or it
says in one line, without a traceback, which extra it needs. Uninstalling leaves nothing behind. With ``types``, a
program that uses the public names is checked by mypy and pyright, both strict, against the installed packages.
"""

from __future__ import annotations

import argparse
import json
import re
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.environments import ROOT, Blocked, create, install, outside, uv

BASE = ("list", "info", "doctor", "new-backend", "audit", "baseline", "replay", "top --once", "plot html")
MODELS = ("example-model", "generate")
# By name: the command line. All run in one folder, in this order.
COMMANDS = {
    "list": "list",
    "info": "info",
    "doctor": "doctor",
    "new-backend": "new-backend acme --output acme",
    "audit": "audit neutral.py",
    "audit --fix": "audit --fix engine.py",
    "baseline": "baseline record run.json --output baseline.json",
    "replay": "replay log.csv",
    "top --once": "top --follow run.jsonl --once",
    "top": "top --follow run.jsonl",
    "plot html": "plot run.jsonl --output run.html",
    "plot png": "plot run.jsonl --output run.png",
    "example-model": "example-model models",
    "generate": "generate --model models/v1 --prompt Pages --max-new-tokens 2",
    "demo": "demo",
    "serve": "serve --model models/v1 --port 0",
    "fleet": "fleet --engine http://127.0.0.1:9 status",
    "conformance": "conformance run --backend cpu --profile core --quiet",
}
ENDLESS = {
    "top": 3.0,
    "serve": 60.0,
}  # seconds until they are told to stop, if they did not end by themselves
_TO_STOP = 60.0  # seconds that a program may take to end
EXTRAS: dict[str, tuple[str, ...]] = {
    "": (),
    "engine": (),
    "transformers": MODELS,
    "serve": (*MODELS, "serve", "demo"),
    "grammar": (),
    "fleet": ("fleet",),
    "stream": (),
    "cli": ("top",),
    "audit": ("audit --fix",),
    "plot": ("plot png",),
    "conformance": ("conformance",),
}
"""By extra: what works with it that does not work without; `BASE` works with all of them."""

_PREPARE = """
import torch
import devicekit
from devicekit.observe import AllocationLog, Mark, MarkKind, Run, Sample, Timeline, provenance_of, watch

with AllocationLog("log.csv") as log, watch(devicekit.get_device("cpu"), log):
    torch.empty(1 << 20, dtype=torch.uint8)
Run({}, provenance_of(devicekit.get_device("cpu"))).write("run.json")
Timeline("cpu:0", samples=[Sample(0.0, 1, 2, 3, 4), Sample(1.0, 1, 2, 3)], marks=[]).write("run.jsonl")
"""
_ENGINE = "import torch\n\ntorch.cuda.synchronize()\n"
_NAMES_AN_EXTRA = re.compile(r"devicekit\[(\w+)\]")
CONSUMER = ROOT / "tools" / "consumer.py"


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command ended."""

    command: str
    status: int
    text: str

    def problem(self, must_work: bool) -> str | None:
        """Why a stranger would be stuck; None if nothing is wrong."""
        if self.status == 0:
            return None
        last = self.text.strip().splitlines()[-1:] or ["nothing was said"]
        if "Traceback" in self.text:
            return f"{self.command} ends with a traceback: {last[0]}"
        if must_work:
            return f"{self.command} should work here and ends with {self.status}: {last[0]}"
        if not _NAMES_AN_EXTRA.search(self.text):
            return f"{self.command} ends with {self.status} and names no extra: {last[0]}"
        return None


def visit(extra: str, folder: Path, wheels: Path, python: str, more: Sequence[str] = ()) -> Iterator[str]:
    """Install one extra, run every command, uninstall: everything that is wrong.

    Raises:
        Blocked: the packages cannot be had here.
    """
    interpreter = create(folder, python)
    wanted = f"devicekit[{extra}]" if extra else "devicekit"
    before = _files(folder)
    install(interpreter, "--find-links", str(wheels), *more, wanted, "devicekit-cpu")
    place = folder / "place"
    place.mkdir()
    (place / "engine.py").write_text(_ENGINE, encoding="utf-8")
    (place / "neutral.py").write_text(_PREPARE, encoding="utf-8")
    prepared = _run([str(interpreter), "-c", _PREPARE], place, 120)
    if prepared.status:
        yield f"the public names do not do: {prepared.text.strip().splitlines()[-1]}"
    for name, line in COMMANDS.items():
        ended = _run([str(folder / "bin" / "devicekit"), *shlex.split(line)], place, 300, ENDLESS.get(name))
        problem = Ended(name, ended.status, ended.text).problem(name in BASE + EXTRAS[extra])
        if problem is not None:
            yield problem
    own = [one for one in _distributions(interpreter) if one.startswith("devicekit")]
    uv("pip", "uninstall", "--quiet", "--python", str(interpreter), *own)
    left = sorted(one for one in _files(folder) - before if "devicekit" in one)
    yield from (f"uninstalling leaves {one}" for one in left)


def consume(folder: Path, wheels: Path, python: str, more: Sequence[str] = ()) -> Iterator[str]:
    """Check a strictly typed program against the installed packages, by mypy and by pyright."""
    interpreter = create(folder, python)
    install(
        interpreter,
        *(
            "--find-links",
            str(wheels),
            *more,
            "devicekit[engine]",
            "devicekit-cpu",
            "mypy",
            "pyright[nodejs]",
        ),
    )
    program = folder / "consumer.py"
    program.write_text(CONSUMER.read_text(encoding="utf-8"), encoding="utf-8")
    settings = {"include": [program.name], "typeCheckingMode": "strict"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    for checker in (["mypy", "--strict", "consumer.py"], ["pyright", "--pythonpath", str(interpreter)]):
        ended = _run([str(folder / "bin" / checker[0]), *checker[1:]], folder, 600)
        if ended.status:
            yield f"{checker[0]}: {ended.text.strip()[-1500:]}"


def main(arguments: Sequence[str] | None = None) -> int:
    """Visit every extra; 1 if anything is wrong anywhere."""
    parser = argparse.ArgumentParser(prog="python -m tools.stranger", description=__doc__)
    add = parser.add_argument
    add("--wheels", type=Path, default=ROOT / "dist", help="built wheels; default: %(default)s")
    add("--python", default=sys.executable, help="interpreter or version; default: this one")
    add("--constraint", action="append", default=[], metavar="FILE", help="as pip's -c")
    add(
        "--only", action="append", choices=["base", "types", *filter(None, EXTRAS)], help="this; default: all"
    )
    options = parser.parse_args(arguments)
    # In the background of a script interrupts are ignored, and programs started from here would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    more = [part for one in options.constraint for part in ("-c", str(Path(one).resolve()))]
    wrong = 0
    for name in options.only or ["base", *filter(None, EXTRAS), "types"]:
        started = time.monotonic()
        with tempfile.TemporaryDirectory() as scratch:
            where = Path(scratch) / "environment"
            if name == "types":
                found = consume(where, options.wheels.resolve(), options.python, more)
            else:
                extra = "" if name == "base" else name
                found = visit(extra, where, options.wheels.resolve(), options.python, more)
            try:
                problems = list(found)
            except Blocked as why:
                problems = [f"cannot be installed: {why}"]
        print(
            f"{name}: {'sound' if not problems else 'WRONG'}, {time.monotonic() - started:.0f} s", flush=True
        )
        for one in problems:
            print(f"  {one}", flush=True)
        wrong += len(problems)
    return int(bool(wrong))


def _run(command: Sequence[str], place: Path, limit: float, stop_after: float | None = None) -> Ended:
    """Run it to its end, or tell it to stop after a while, and then it must end well."""
    running = subprocess.Popen(
        command, cwd=place, env=outside(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        text, _ = running.communicate(timeout=stop_after or limit)
    except subprocess.TimeoutExpired:
        running.send_signal(signal.SIGINT if stop_after else signal.SIGKILL)
        try:
            text, _ = running.communicate(timeout=_TO_STOP)
        except subprocess.TimeoutExpired:
            running.kill()
            text, _ = running.communicate()
            return Ended(command[0], 1, f"{text}\nit goes on {_TO_STOP:.0f} s after it was told to stop")
        if stop_after and running.returncode in (0, 130):
            return Ended(command[0], 0, text)
    return Ended(command[0], running.returncode, text)


def _files(folder: Path) -> set[str]:
    roots = [folder / "bin", *folder.glob("lib/python*/site-packages")]
    found = (one for root in roots for one in root.rglob("*") if "__pycache__" not in one.parts)
    return {str(one.relative_to(folder)) for one in found}


def _distributions(interpreter: Path) -> list[str]:
    listed = uv("pip", "list", "--python", str(interpreter), "--format", "freeze")
    return [line.partition("==")[0] for line in listed.split()]


if __name__ == "__main__":
    sys.exit(main())
