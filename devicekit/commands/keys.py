"""Where the keys of a server come from: the environment, a file, or an option; and how they are kept out of sight.

Every user of a machine can read the command line of every process, so a key given as an option is moved to the
environment of this one, which only its own user can read, before anything else is done. What launched it still
shows the option: a file is the better way then.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping, MutableMapping, Sequence
from pathlib import Path
from types import MappingProxyType

from devicekit.contract.errors import ConfigurationError
from devicekit.files import UnreadableFile, read_regular

KEY_OPTIONS: Mapping[str, str] = MappingProxyType(
    {"--api-key": "DEVICEKIT_API_KEY", "--admin-api-key": "DEVICEKIT_ADMIN_API_KEY"}
)
"""Options that take a key, and the environment variables that do the same."""

_LONGEST = 4096  # bytes of a key file


def key(
    option: str, given: str | None, file: str | Path | None, environ: MutableMapping[str, str]
) -> str | None:
    """The key of one kind; ``None`` if there is none. The variable is taken out of the environment.

    Args:
        option: a name in `KEY_OPTIONS`.
        given: the option's value, which wins over the environment.
        file: a file that holds the key, as text.
        environ: the process's environment, which children need not inherit a key from.

    Raises:
        ConfigurationError: the key is given twice, is empty, or cannot be read.
    """
    variable = KEY_OPTIONS[option]
    inherited = environ.pop(variable, None)
    if file is not None and (given is not None or inherited is not None):
        other = option if given is not None else variable
        raise ConfigurationError(f"The key is given twice, by {other} and by {option}-file: leave one out.")
    if given is not None:
        return given
    if file is not None:
        return _from_file(file)
    if inherited is not None and not inherited.strip():
        raise ConfigurationError(
            f"{variable} is empty, which would let everybody in: unset it to ask for none."
        )
    return inherited


def hide(arguments: Sequence[str]) -> None:
    """Start this process anew without the keys on its command line, if there are any.

    Does nothing where ``arguments`` are not those that the process was started with.
    """
    rest, keys = split(arguments)
    if not keys or os.name != "posix" or not sys.executable:
        return
    if not arguments or sys.orig_argv[-len(arguments) :] != [*arguments]:
        return
    before = sys.orig_argv[1 : -len(arguments)]
    sys.stdout.flush()
    sys.stderr.flush()
    os.execve(sys.executable, [sys.orig_argv[0], *before, *rest], {**os.environ, **keys})


def split(arguments: Sequence[str]) -> tuple[list[str], dict[str, str]]:
    """The arguments without keys, and the keys by environment variable."""
    rest: list[str] = []
    keys: dict[str, str] = {}
    waiting: str | None = None
    for one in arguments:
        name, equals, value = one.partition("=")
        if waiting is not None:
            keys[waiting], waiting = one, None
        elif one in KEY_OPTIONS:
            waiting = KEY_OPTIONS[one]
        elif equals and name in KEY_OPTIONS:
            keys[KEY_OPTIONS[name]] = value
        else:
            rest.append(one)
    return (rest, keys) if waiting is None else ([*arguments], {})


def _from_file(file: str | Path) -> str:
    try:
        text = read_regular(file, _LONGEST).decode()
    except UnreadableFile as error:
        raise ConfigurationError(f"The key cannot be read: {error}") from error
    except UnicodeDecodeError as error:
        raise ConfigurationError(f"The key in {file} is not text in UTF-8.") from error
    found = text.strip()
    if not found:
        raise ConfigurationError(f"The file {file} holds no key.")
    return found
