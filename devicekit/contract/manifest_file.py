"""The file behind a manifest: its text, its TOML, and the lines its keys stand on, whatever the file is."""

from __future__ import annotations

import re
import sys
from collections.abc import Mapping
from pathlib import Path

from devicekit.contract.errors import ManifestError

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

MOST_BYTES = 1 << 16  # the longest manifest in use has a fiftieth of that


def read_manifest(path: Path) -> tuple[str, Mapping[str, object]]:
    """Text and content of a ``backend.toml``.

    Raises:
        ManifestError: the file is missing, no file, too large, no UTF-8, or no TOML that can be read.
    """
    try:
        if not path.is_file() and path.exists():  # a pipe would never end
            raise ManifestError(f"The manifest {path} is not a file.")
        with path.open("rb") as file:
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
    try:
        return text, tomllib.loads(text.replace("\r\n", "\n"))
    except tomllib.TOMLDecodeError as error:
        raise ManifestError(f"The manifest {path} is not valid TOML: {error}") from error
    except RecursionError as error:
        line = _deepest_line(text)
        raise ManifestError(f"The manifest {path} is nested too deeply (line {line}).") from error
    except ValueError as error:  # a number of more digits than Python reads
        raise ManifestError(f"The manifest {path} holds a value that cannot be read: {error}") from error


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
