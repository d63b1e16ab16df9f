"""The keys of an application, read on each node from its files."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from devicekit.contract.errors import ConfigurationError
from devicekit.files import UnreadableFile, read_regular
from devicekit.ray_serve.arguments import Arguments

_LONGEST = 4096  # bytes


@dataclass(frozen=True, slots=True)
class Keys:
    """Keys as texts; ``None``: there is none."""

    user: str | None
    admin: str | None


def read_keys(arguments: Arguments) -> Keys:
    """The keys that the arguments name the files of.

    Raises:
        ConfigurationError: a file cannot be read, or is empty.
    """
    return Keys(_read(arguments.api_key_file), _read(arguments.admin_api_key_file))


def _read(path: Path | None) -> str | None:
    if path is None:
        return None
    try:
        key = read_regular(path, _LONGEST).decode().strip()
    except (UnreadableFile, UnicodeDecodeError) as error:
        raise ConfigurationError(f"The key in {path} cannot be read: {error}") from error
    if not key:
        raise ConfigurationError(f"{path} holds no key, which would let everybody in.")
    return key
