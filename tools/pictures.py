"""``python -m tools.pictures``: captures what the commands print, at two widths, and what the pages look like.

Terminal captures are SVG files of real output, in docs/pictures. Folders and the machine's own names in it are
replaced by neutral ones, so that a picture changes when the output does. Screenshots need chromium; without one
they are left as they are, and that is said.
"""

from __future__ import annotations

import argparse
import fcntl
import io
import json
import os
import platform
import pty
import re
import shutil
import struct
import subprocess
import sys
import tempfile
import termios
import time
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

from rich.console import Console
from rich.text import Text

CHECKOUT = Path(__file__).parents[1]
FOLDER = CHECKOUT / "docs" / "pictures"
WIDTHS = (80, 100)
COMMANDS: Mapping[str, tuple[str, ...]] = {
    "info": ("info",),
    "doctor": ("doctor",),
    "top": ("top", "--follow", "run.jsonl", "--once"),
    "demo": ("demo",),
    "conformance": ("conformance", "run", "--backend", "cpu", "--profile", "core", "--report", "out"),
}
_BROWSERS = ("chromium", "chromium-browser", "google-chrome")
_CONTROL = re.compile(r"\x1b\[(\??[0-9;]*)([A-Za-z])|[\r\n]|[^\x1b\r\n]+|\x1b")
_COLOUR = "m"


def main(arguments: Sequence[str] | None = None) -> int:
    """Write the pictures; exit status 0."""
    parser = argparse.ArgumentParser(prog="python -m tools.pictures", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help="default: all of them")
    wanted = parser.parse_args(arguments).names or [*COMMANDS, "pages"]
    FOLDER.mkdir(exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        scratch = Path(folder)
        _prepare(scratch)
        for name in COMMANDS.keys() & set(wanted):
            for width in WIDTHS:
                printed = clean(terminal(COMMANDS[name], scratch, width), scratch)
                _write(f"{name}-{width}.svg", as_svg(printed, f"devicekit {' '.join(COMMANDS[name])}", width))
        if "pages" in wanted:
            _screenshots(scratch)
    return 0


def terminal(arguments: Sequence[str], folder: Path, width: int) -> str:
    """What ``devicekit ARGUMENTS`` leaves on a terminal of that width, with its colours."""
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 40, width, 0, 0))
    command = [sys.executable, "-m", "devicekit", *arguments]
    surroundings = {**os.environ, "COLUMNS": str(width), "TERM": "xterm-256color"}
    with subprocess.Popen(
        command, cwd=folder, env=surroundings, stdin=subprocess.DEVNULL, stdout=theirs, stderr=theirs
    ):
        os.close(theirs)
        printed = b"".join(_chunks(ours))
    os.close(ours)
    return settled(printed.decode())


def settled(printed: str) -> str:
    """The lines that are still there when everything was printed: what was erased or written over is gone."""
    lines, at = [""], 0
    returned = False
    for found in _CONTROL.finditer(printed):
        text, count, kind = found[0], found[1], found[2]
        if text == "\n":
            at += 1
            if at == len(lines):
                lines.append("")
            returned = False
        elif text == "\r":
            returned = True
        elif kind == "A":
            at = max(0, at - int(count or 1))
            returned = True
        elif kind == "K":
            lines[at], returned = "", False
        elif kind in (None, _COLOUR):
            lines[at] = text if returned else lines[at] + text
            returned = False
    return "\n".join(lines).rstrip() + "\n"


def clean(printed: str, scratch: Path) -> str:
    """Without the folders and the names of the machine that it was printed on."""
    for found, neutral in (
        (str(scratch), "~/work"),
        (str(CHECKOUT), "~/devicekit"),
        (platform.platform(), "Linux"),
        (_processor(), "Processor"),
    ):
        printed = printed.replace(found, neutral) if found else printed
    return printed


def as_svg(printed: str, title: str, width: int) -> str:
    """A picture of a terminal. It loads nothing: the reader's own fixed-width font shows it."""
    console = Console(
        record=True, width=width, file=io.StringIO(), force_terminal=True, color_system="truecolor"
    )
    for line in printed.splitlines():
        console.print(Text.from_ansi(line), soft_wrap=False)
    svg = console.export_svg(title=title, unique_id=re.sub(r"\W+", "-", f"{title}-{width}"))
    svg = re.sub(r"\s*@font-face \{.*?\}", "", svg, flags=re.DOTALL)
    return svg.replace("Fira Code, monospace", "ui-monospace, Menlo, Consolas, monospace")


def _chunks(descriptor: int) -> Iterator[bytes]:
    while True:
        try:
            read = os.read(descriptor, 1 << 16)
        except OSError:  # how a terminal says that its last writer is gone
            return
        if not read:
            return
        yield read


def _processor() -> str:
    from devicekit import get_device

    return get_device("cpu").properties().name or ""


def _prepare(folder: Path) -> None:
    """Example models, and a recording of an engine on the simulated accelerator."""
    subprocess.run([sys.executable, "-m", "devicekit", "example-model", "models"], cwd=folder, check=True)
    subprocess.run([sys.executable, "-c", _RECORDED], cwd=folder, check=True)


_RECORDED = """
import time

from devicekit import get_device
from devicekit.engine import Engine, EngineConfig
from devicekit.observe import Recorder, write_html
from devicekit.runners import ModelDirectory
from devicekit.testing import MIB, SimConfig, sim_backend, simulation

with simulation(SimConfig(capacity=256 * MIB)):
    sim_backend.register()
    device = get_device("sim")
    ModelDirectory.open("models/v1").tokenizer()  # imports what would be half of the picture
    with Recorder(device, path="run.jsonl") as recorder:
        with recorder.verb("open"):
            engine = Engine.open("models/v1", device=device, config=EngineConfig(kv_tokens=4096))
        recorder.attach(engine.scheduler.control)
        with recorder.verb("generate"):
            engine.generate(["Pages of keys"] * 4, max_new_tokens=8)
        engine.flush()
        engine.release_memory(backup_weights=True)
        time.sleep(0.1)
        engine.resume_memory()
        with recorder.verb("generate"):
            engine.generate(["Pages of keys"] * 4, max_new_tokens=8)
    write_html(recorder.timeline, "run.html")
"""


def _screenshots(folder: Path) -> None:
    browser = next(filter(None, map(shutil.which, _BROWSERS)), None)
    if browser is None:
        print("no chromium here: the pages' pictures are left as they are")
        return
    _screenshot(browser, (folder / "run.html").as_uri(), "timeline.png")
    if (report := folder / "out" / "report.html").exists():
        _screenshot(browser, report.as_uri(), "report.png")
    if (site := CHECKOUT / "site" / "index.html").exists():
        _screenshot(browser, site.as_uri(), "site.png")
    with _served(folder) as address:
        until = time.monotonic() + 8  # seconds: long enough for the page's curves
        while time.monotonic() < until:
            wishes = {"max_new_tokens": 32, "ignore_eos": True}
            _post(f"{address}/generate", {"text": "Pages of keys", "sampling_params": wishes})
            time.sleep(0.3)
        _screenshot(browser, address, "status.png")


def _screenshot(browser: str, address: str, name: str) -> None:
    target = FOLDER / name
    # A container's root has no sandbox to give; the pages are our own.
    command = [browser, "--headless", "--no-sandbox", "--hide-scrollbars", "--window-size=1200,800"]
    options = ["--virtual-time-budget=4000", f"--screenshot={target}", address]
    subprocess.run([*command, *options], check=True, capture_output=True, timeout=120)
    _shrink(target)
    print(target)


def _shrink(path: Path) -> None:
    from PIL import Image

    with Image.open(path) as picture:
        picture.convert("RGB").quantize(64).save(path, optimize=True)


@contextmanager
def _served(folder: Path) -> Iterator[str]:
    command = [
        sys.executable,
        "-m",
        "devicekit",
        "serve",
        "--model",
        "models/v1",
        "--port",
        "0",
        "--device",
        "cpu",
    ]
    with subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        try:
            yield process.stdout.readline().split()[-1]
        finally:
            process.terminate()


def _post(address: str, body: Mapping[str, object]) -> None:
    request = urllib.request.Request(
        address, json.dumps(body).encode(), {"Content-Type": "application/json"}, method="POST"
    )
    with urllib.request.urlopen(request, timeout=60) as answer:
        answer.read()


def _write(name: str, text: str) -> None:
    (FOLDER / name).write_text(text, encoding="utf-8")
    print(FOLDER / name)


if __name__ == "__main__":
    sys.exit(main())
