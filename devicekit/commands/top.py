"""``devicekit top``: the memory of a device, or of an engine that writes a recording, live."""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from devicekit.commands.arguments import seconds
from devicekit.contract.errors import ConfigurationError
from devicekit.contract.text import human_bytes
from devicekit.device import Device, get_device
from devicekit.files import UnreadableFile, open_regular
from devicekit.observe.recorder import Recorder
from devicekit.observe.timeline import Timeline

_MOST_AT_ONCE = 64 << 20  # bytes

Extra = Callable[[], Sequence[str]]


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="devicekit top",
        description="Watch a device's memory. Initialises no device: what only that could tell stays unknown.",
    )
    parser.add_argument("--device", help="backend, or backend:index; default: DEVICEKIT_BACKEND, or the best")
    parser.add_argument(
        "--follow",
        type=Path,
        metavar="FILE",
        help="a recording of an engine that is running; default: the device itself",
    )
    parser.add_argument(
        "--interval",
        type=seconds,
        default=1.0,
        metavar="SECONDS",
        help="seconds between looks; default: %(default)g",
    )
    parser.add_argument("--once", action="store_true", help="print one picture and end")
    options = parser.parse_args(arguments)
    if options.follow is not None:
        tail = _Tail(options.follow)
        return _show(tail.read, lambda: (), options.interval, options.once)
    device = get_device(options.device)
    recorder = Recorder(device)

    def look() -> Timeline:
        recorder.sample()
        return recorder.timeline

    return _show(look, lambda: _processes(device), options.interval, options.once)


def _show(look: Callable[[], Timeline], extra: Extra, interval: float, once: bool) -> int:
    if once:
        from devicekit.commands.top_view import as_text

        print(as_text(look(), extra()))
        return 0
    try:
        from devicekit.commands.rich_top import show
    except ImportError:
        message = "devicekit top: the live view needs rich. Try: pip install 'devicekit[cli]', or --once"
        print(message, file=sys.stderr)
        return 1
    show(look, extra, lambda: time.sleep(interval))
    return 0


def _processes(device: Device) -> Sequence[str]:
    """Who holds memory on the device, where the vendor says."""
    found = device.process_memory()
    if found is None:
        return ("processes: unknown, this backend cannot be asked",)
    return [f"process {one.pid}: {human_bytes(one.used)}" for one in found] or ["processes: none"]


class _Tail:
    """A recording that grows; each call reads only what came since the last."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._place = 0
        self._rest = b""
        self._timeline: Timeline | None = None

    def read(self) -> Timeline:
        try:
            with open_regular(self._path) as descriptor:
                # A recording far behind is caught up with over several looks.
                added = os.pread(descriptor, _MOST_AT_ONCE, self._place)
            self._place += len(added)
            *complete, self._rest = (self._rest + added).split(b"\n")
            lines = [line.decode() for line in complete]
            if len(self._rest) > _MOST_AT_ONCE:
                raise UnreadableFile("it has a line that no program wrote")
        except (UnreadableFile, OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"The recording {self._path} cannot be read: {error}") from error
        if self._timeline is None:
            self._timeline = Timeline.parse(lines, str(self._path))
        else:
            self._timeline.extend(lines, str(self._path))
        return self._timeline
