"""Installs one extra of the built wheels into a clean environment, and does there what a stranger would do."""

from __future__ import annotations

import contextlib
import json
import re
import resource
import shlex
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timezone
from pathlib import Path
from typing import IO

from tools.environments import ROOT, Blocked, create, install, outside, revision_of_checkout, uv
from tools.stranger.extras import BASE, COMMANDS, ENDLESS, EXTRAS, PROGRAMS, example
from tools.stranger.page import Visit
from tools.warm import Warm

_WARM = (
    *("torch", "numpy", "safetensors.torch", "tokenizers"),
    *("transformers.models.llama.modeling_llama", "transformers.models.auto.modeling_auto"),
)
CONSUMER = ROOT / "tools" / "consumer.py"
_LIMIT = 600.0  # seconds for one command, on a machine with a load of ten as well
_TO_STOP = 60.0  # seconds that a program may take to end
_LOOK = 3.0  # seconds of a live view, which says nothing that could be waited for
_PREPARE = """
import torch
import devicekit
from devicekit.observe import AllocationLog, Mark, MarkKind, Run, Sample, Timeline, provenance_of, watch

with AllocationLog("log.csv") as log, watch(devicekit.get_device("cpu"), log):
    torch.empty(1 << 20, dtype=torch.uint8)
Run({}, provenance_of(devicekit.get_device("cpu"))).write("run.json")
Timeline("cpu:0", samples=[Sample(0.0, 1, 2, 3, 4), Sample(1.0, 1, 2, 3)], marks=[]).write("run.jsonl")
"""
_VERSIONS = """
import platform
from importlib.metadata import version

print(platform.python_version(), version("torch"))
"""
_ENGINE = "import torch\n\n\ndef wait() -> None:\n    torch.cuda.synchronize()\n"
_NAMES_AN_EXTRA = re.compile(r"devicekit\[(\w+)\]")


@dataclass(frozen=True, slots=True)
class Ended:
    """How a command or a program ended."""

    name: str
    status: int
    text: str

    def problem(self, must_work: bool) -> str | None:
        """Why a stranger would be stuck; None if nothing is wrong."""
        if self.status == 0:
            return None
        last = self.text.strip().splitlines()[-1:] or ["nothing was said"]
        if self.name in COMMANDS and "Traceback" in self.text:
            return f"{self.name} ends with a traceback: {last[0]}"
        if must_work:
            return f"{self.name} should work here and ends with {self.status}: {last[0]}"
        if not _NAMES_AN_EXTRA.search(self.text if self.name in COMMANDS else last[0]):
            return f"{self.name} ends with {self.status} and names no extra: {last[0]}"
        return None


def visit(extras: str, folder: Path, wheels: Path, python: str, more: Sequence[str] = ()) -> Visit:
    """Install the extras into ``folder``, run everything, uninstall."""
    wanted = [f"devicekit[{extras}]" if extras else "devicekit", "devicekit-cpu"]
    environment = _Environment(folder, python, [*_from(wheels), *more, *wanted])
    return _timed(Visit(extras or "base"), environment, lambda seen: _seen(extras, environment, seen))


def consume(folder: Path, wheels: Path, python: str, more: Sequence[str] = ()) -> Visit:
    """Check a strictly typed program against the installed packages, by mypy and by pyright."""
    wanted = ["devicekit[engine]", "devicekit-cpu", "mypy", "pyright[nodejs]"]
    environment = _Environment(folder, python, [*_from(wheels), *more, *wanted])
    return _timed(Visit("types"), environment, lambda seen: _checked(environment, seen))


def _from(wheels: Path) -> list[str]:
    """Take these wheels: uv would take one of the same name and version that it has seen before."""
    own = sorted({one.name.partition("-")[0].replace("_", "-") for one in wheels.glob("devicekit*.whl")})
    return ["--find-links", str(wheels), *(part for one in own for part in ("--refresh-package", one))]


@dataclass(slots=True)
class _Environment:
    """A clean environment that is made when the visit begins."""

    folder: Path
    version: str
    arguments: Sequence[str]

    @property
    def python(self) -> str:
        return str(self.folder / "bin" / "python")

    def make(self) -> set[str]:
        """Install; the files that were there before."""
        interpreter = create(self.folder, self.version)
        before = self.files()
        install(interpreter, *self.arguments)
        return before

    def files(self) -> set[str]:
        roots = [self.folder / "bin", *self.folder.glob("lib/python*/site-packages")]
        found = (one for root in roots for one in root.rglob("*") if "__pycache__" not in one.parts)
        return {str(one.relative_to(self.folder)) for one in found}


def _timed(seen: Visit, environment: _Environment, work: Callable[[Visit], Iterable[str]]) -> Visit:
    started, before = time.monotonic(), _cpu_seconds()
    seen.started = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    seen.revision = revision_of_checkout()
    try:
        seen.wrong.extend(work(seen))
        asked = _run("versions", [environment.python, "-c", _VERSIONS], environment.folder)
        seen.python, seen.torch = asked.text.split()[-2:]
    except Blocked as why:
        seen.wrong.append(f"cannot be installed: {why}")
    seen.seconds, seen.cpu_seconds = time.monotonic() - started, _cpu_seconds() - before
    return seen


def _seen(extras: str, environment: _Environment, seen: Visit) -> Iterator[str]:
    before = environment.make()
    place = environment.folder / "place"
    _furnish(place)
    prepared = _run("preparing", [environment.python, "-c", _PREPARE], place)
    if prepared.status:
        yield f"the public names do not do: {prepared.text.strip().splitlines()[-1]}"
    with Warm(environment.folder, _WARM, environment.python) as warm:
        if extras:
            warm.start(outside())
        python = warm.python if extras else [environment.python]  # the base once as it really is
        command = [*python, str(environment.folder / "bin" / "devicekit")]
        lines = {name: [*command, *shlex.split(line)] for name, line in COMMANDS.items()}
        lines |= {name: [*python, "-c", text] for name, text in PROGRAMS.items()}
        for name, line in lines.items():
            ended = _run(name, line, place, ENDLESS.get(name))
            (seen.refused if ended.status else seen.works).append(name)
            problem = ended.problem(name in BASE + EXTRAS[extras])
            if problem is not None:
                yield problem
    listed = uv("pip", "list", "--python", environment.python, "--format", "freeze").split()
    own = [line.partition("==")[0] for line in listed if line.startswith("devicekit")]
    uv("pip", "uninstall", "--quiet", "--python", environment.python, *own)
    left = sorted(one for one in environment.files() - before if "devicekit" in one)
    yield from (f"uninstalling leaves {one}" for one in left)


def _furnish(place: Path) -> None:
    """A folder to work in: code of an engine, code that names no vendor, and the README's backend."""
    backend = place / "acme_backend"
    backend.mkdir(parents=True)
    (backend / "__init__.py").write_text(example("plugin"), encoding="utf-8")
    (backend / "backend.toml").write_text(example("manifest"), encoding="utf-8")
    (place / "engine.py").write_text(_ENGINE, encoding="utf-8")
    (place / "neutral.py").write_text(_PREPARE, encoding="utf-8")


def _checked(environment: _Environment, seen: Visit) -> Iterator[str]:
    environment.make()
    folder = environment.folder
    program = folder / "consumer.py"
    program.write_text(CONSUMER.read_text(encoding="utf-8"), encoding="utf-8")
    settings = {"include": [program.name], "typeCheckingMode": "strict"}
    (folder / "pyrightconfig.json").write_text(json.dumps(settings), encoding="utf-8")
    for checker in (["mypy", "--strict", "consumer.py"], ["pyright", "--pythonpath", environment.python]):
        ended = _run(checker[0], [str(folder / "bin" / checker[0]), *checker[1:]], folder)
        if ended.status:
            yield f"{checker[0]}: {ended.text.strip()[-1500:]}"
        else:
            seen.works.append(f"{checker[0]}, strict")


def _run(name: str, command: Sequence[str], place: Path, until: str | None = None) -> Ended:
    """Run it to its end. With ``until``, tell it to stop once it has said so, and then it must end well."""
    running = subprocess.Popen(
        command, cwd=place, env=outside(), stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert running.stdout is not None
    said, stopped = "", False
    with _at_most(_LIMIT, running):
        if until is not None:
            said = _up_to(until, running.stdout)
            stopped = running.poll() is None
        if not stopped:
            said += running.stdout.read()
    if stopped:
        running.send_signal(signal.SIGINT)
        with _at_most(_TO_STOP, running):
            said += running.stdout.read()
    status = running.wait()
    return Ended(name, 0 if stopped and status == 130 else status, said)


@contextlib.contextmanager
def _at_most(seconds: float, running: subprocess.Popen[str]) -> Iterator[None]:
    timer = threading.Timer(seconds, running.kill)
    timer.start()
    try:
        yield
    finally:
        timer.cancel()


def _up_to(beginning: str, lines: IO[str]) -> str:
    """What is said up to a line that begins so; with no beginning, nothing, after a look."""
    if not beginning:
        time.sleep(_LOOK)
        return ""
    said = ""
    for line in lines:
        said += line
        if line.startswith(beginning):
            break
    return said


def _cpu_seconds() -> float:
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime
