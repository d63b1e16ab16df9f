"""The file behind a manifest: its text, its TOML, and the lines its keys stand on, whatever the file is."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Mapping
from pathlib import Path

from devicekit.contract.errors import ManifestError
from devicekit.contract.toml_text import NestedTooDeeply, parse_toml

MOST_BYTES = 1 << 16  # the longest manifest in use has a fiftieth of that


def read_manifest(path: Path) -> tuple[str, Mapping[str, object]]:
    """Text and content of a ``backend.toml``.

    Raises:
        ManifestError: the file is missing, no file, too large, no UTF-8, or no TOML that can be read.
    """
    try:
        # A pipe would never end; and it may come in the place of the file after it was looked at.
        if not path.is_file() and path.exists():
            raise ManifestError(f"The manifest {path} is not a file.")
        with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb") as file:
            if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
                raise ManifestError(f"The manifest {path} is not a file.")
            content = file.read(MOST_BYTES + 1)
    except (OSError, ValueError) as error:
        raise ManifestError(f"The manifest {path} cannot be read: {error}") from error
    if len(content) > MOST_BYTES:
        raise ManifestError(f"The manifest {path} is larger than {MOST_BYTES} bytes.")
    try:
        text = content.decode("utf-8")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise ManifestError(f"The manifest {path} is not UTF-8 (line {line}): {error}") from error
    if text.startswith("\ufeff"):
        raise ManifestError(
            f"The manifest {path} begins with a byte order mark (line 1): save it as plain UTF-8."
        )
    try:
        return text, parse_toml(text)
    except NestedTooDeeply as error:
        line = _deepest_line(text)
        raise ManifestError(f"The manifest {path} is nested too deeply (line {line}).") from error
    except ValueError as error:
        raise ManifestError(f"The manifest {path} is not valid TOML: {error}") from error


def line_of(text: str, key: str) -> int | None:
    """The line, counted from 1, that sets ``key`` of the [backend] table; ``None`` where that is not plain."""
    start = re.search(r"^[ \t]*\[[ \t]*backend[ \t]*\]", text, re.MULTILINE)
    if start is None:
        return None
    written = rf"""^[ \t]*(?P<quote>["']?){re.escape(key)}(?P=quote)[ \t]*[.=]"""
    found = re.compile(written, re.MULTILINE).search(text, start.end())
    return None if found is None else text.count("\n", 0, found.start()) + 1


def _deepest_line(text: str) -> int:
    lines = text.splitlines() or [""]
    opened = [line.count("[") + line.count("{") + line.count(".") for line in lines]
    return opened.index(max(opened)) + 1
