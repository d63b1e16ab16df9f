"""``python -m examples.port``: writes audit.diff and by-hand.diff from what the audit makes of `before` today."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from examples.port.steps import FOLDER, STEPS, diffs


def main() -> int:
    """Write both; exit status 0."""
    with tempfile.TemporaryDirectory() as scratch:
        for name, text in zip(STEPS, diffs(Path(scratch)), strict=True):
            (FOLDER / name).write_text(text, encoding="utf-8")
            print(FOLDER / name)
    return 0


if __name__ == "__main__":
    sys.exit(main())
