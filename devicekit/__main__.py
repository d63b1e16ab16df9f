"""``python -m devicekit``: the command line, for launchers that start modules."""

from __future__ import annotations

import sys

from devicekit.cli import main

if __name__ == "__main__":
    sys.exit(main())
