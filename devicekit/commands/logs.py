"""What a command that runs for long writes to standard error."""

from __future__ import annotations

import logging
import sys

LEVELS = ("debug", "info", "warning", "error")


def write_logs(level: str, *, access: bool = False) -> None:
    """Have devicekit's loggers write from ``level`` on; ``access``: uvicorn's line for every request as well."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(asctime)s %(levelname)-7s %(message)s"))
    for name, lowest in (("devicekit", level.upper()), ("uvicorn.access", "INFO" if access else "CRITICAL")):
        logger = logging.getLogger(name)
        logger.handlers[:] = [handler]
        logger.setLevel(lowest)
