"""Finds Python files and reads them, in whatever encoding and with whatever line ends they have."""

from __future__ import annotations

import codecs
import os
import shutil
import tempfile
import tokenize
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from fnmatch import fnmatch
from io import BytesIO
from pathlib import Path

from devicekit.contract.errors import ConfigurationError
from devicekit.files import UnreadableFile, read_regular

_LONGEST = 16 << 20  # bytes of one file of source

_SKIPPED = frozenset({"__pycache__", "build", "dist", "node_modules", "site-packages", "venv"})


class Unreadable(Exception):
    """A file whose text cannot be had."""


@dataclass(frozen=True, slots=True)
class Source:
    """One file's text, with what it takes to write it back."""

    path: Path
    text: str
    encoding: str

    def write(self, text: str) -> None:
        """Put ``text`` in the file's place, at once or not at all."""
        real = self.path.resolve()
        handle, name = tempfile.mkstemp(dir=real.parent, prefix=f".{real.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(text.encode(self.encoding))
            shutil.copymode(real, name)
            os.replace(name, real)
        except BaseException:
            os.unlink(name)
            raise


def python_files(paths: Sequence[Path], exclude: Sequence[str]) -> Iterator[Path]:
    """Every file that is to be audited, each once.

    Raises:
        ConfigurationError: a path does not exist.
    """
    seen: set[Path] = set()
    for path in paths:
        if not path.exists():
            raise ConfigurationError(f"There is no {path} to audit.")
        for one in [path] if path.is_file() else sorted(path.rglob("*.py")):
            parts = one.relative_to(path).parts[:-1]
            hidden = any(part.startswith(".") or part in _SKIPPED for part in parts)
            if hidden or one in seen or any(fnmatch(one.as_posix(), pattern) for pattern in exclude):
                continue
            if one.is_file():  # and no folder, pipe or broken link of that name
                seen.add(one)
                yield one


def shown(path: Path) -> str:
    """A path as text that can be printed anywhere."""
    return os.fsencode(path.as_posix()).decode("utf-8", "backslashreplace")


def read(path: Path) -> Source:
    """A file's text, with its line ends as they are.

    Raises:
        Unreadable: it cannot be opened, or is not in the encoding that it declares.
    """
    try:
        data = read_regular(path, _LONGEST)
        encoding, _ = tokenize.detect_encoding(BytesIO(data).readline)
        codecs.lookup(encoding)
        return Source(path, data.decode(encoding), encoding)
    except (UnreadableFile, SyntaxError, UnicodeError, LookupError) as error:
        raise Unreadable(str(error)[:500]) from error
