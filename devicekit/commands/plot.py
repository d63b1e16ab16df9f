"""``devicekit plot``: the picture of a recorded timeline, as HTML or PNG."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from devicekit.contract.text import shown
from devicekit.observe.html import write_html
from devicekit.observe.timeline import Timeline


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        prog="devicekit plot",
        description="Draw a recorded timeline: allocated, reserved and free memory, verbs and release points.",
    )
    parser.add_argument("recording", type=Path, help="JSON lines that a recorder wrote")
    parser.add_argument("-o", "--output", type=Path, required=True, help="a file ending in .html or .png")
    parser.add_argument(
        "--dark", action="store_true", help="PNG on a dark background; HTML follows the reader"
    )
    options = parser.parse_args(arguments)
    timeline = Timeline.read(options.recording)
    if options.output.suffix == ".html":
        write_html(timeline, options.output)
    elif options.output.suffix == ".png":
        try:
            from devicekit.observe.png import write_png
        except ImportError:
            print("devicekit plot: PNG needs Pillow. Try: pip install 'devicekit[plot]'", file=sys.stderr)
            return 1
        write_png(timeline, options.output, dark=options.dark)
    else:
        parser.error(f"the output must end in .html or .png, not {shown(options.output.name)}")
    return 0
