"""Small documents that others wrote: text, JSON and TOML, of which nothing is too large, too deep or waited for.

What comes from here can be walked through and printed by functions that call themselves. Whether it says what it
should is for its reader to find out.
"""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import NoReturn

from devicekit.contract.text import shown
from devicekit.contract.toml_text import parse_toml
from devicekit.files import UnreadableFile, open_regular, read_regular

LONGEST = 16 << 20  # bytes; what is written by machines has its own bound where that is too little
_LONGEST_TOML = 1 << 20  # bytes; people write these
_LONGEST_LINE = 1 << 20  # characters
_DEEPEST = 100  # lists and tables in one another
_LONGEST_PART = 100  # characters of a name, where it leads to what is wrong
_HALVES = re.compile("[\ud800-\udfff]")


class UnreadableDocument(UnreadableFile):
    """A file is no text, no JSON or no TOML, or is nested deeper than anything of use."""


def read_text(path: str | Path, limit: int = LONGEST) -> str:
    """The text of a file in UTF-8, with its line ends as they are.

    Raises:
        UnreadableFile: it cannot be read, is no regular file, or has more than ``limit`` bytes.
        UnreadableDocument: it is not UTF-8.
    """
    try:
        return read_regular(path, limit).decode("utf-8")
    except UnicodeDecodeError as error:
        raise UnreadableDocument(f"{path} cannot be read as UTF-8: {error}.") from error


def read_lines(path: str | Path) -> Iterator[str]:
    """The lines of a file in UTF-8 as long as there are any, each with its end: the last may have none yet.

    Raises:
        UnreadableFile: it cannot be read, or is no regular file.
        UnreadableDocument: it is not UTF-8, or has a line that no program wrote.
    """
    with (
        open_regular(path) as descriptor,
        open(descriptor, encoding="utf-8", newline="", closefd=False) as file,
    ):
        try:
            while line := file.readline(_LONGEST_LINE):
                if len(line) == _LONGEST_LINE:
                    raise UnreadableDocument(f"{path} has a line of more than {_LONGEST_LINE} characters.")
                yield line
        except (OSError, UnicodeDecodeError) as error:
            raise UnreadableDocument(f"{path} cannot be read: {error}.") from error


def read_json(path: str | Path, limit: int = LONGEST) -> object:
    """What a file of JSON holds.

    Raises:
        UnreadableFile: it cannot be read, is no regular file, or has more than ``limit`` bytes.
        UnreadableDocument: it is no JSON.
    """
    return parse_json(read_text(path, limit), str(path))


def read_toml(path: str | Path) -> Mapping[str, object]:
    """What a file of TOML holds.

    Raises:
        UnreadableFile: it cannot be read, is no regular file, or is larger than any that somebody wrote.
        UnreadableDocument: it is no TOML.
    """
    text = read_text(path, _LONGEST_TOML)
    try:
        document = parse_toml(text)
    except ValueError as error:
        raise UnreadableDocument(f"{path} cannot be read as TOML: {error}.") from error
    _require_shallow(document, str(path))
    return document


def parse_json(text: str, name: str) -> object:
    """What a text in JSON holds.

    Args:
        name: of where it is from, for the error.

    Raises:
        UnreadableDocument: it is no JSON.
    """
    try:
        document: object = json.loads(text)
    except RecursionError as error:
        raise UnreadableDocument(f"{name} is nested too deeply.") from error
    except ValueError as error:  # also numbers of more digits than Python reads
        raise UnreadableDocument(f"{name} cannot be read as JSON: {error}.") from error
    _require_shallow(document, name)
    return document


def parse_sent(content: bytes) -> dict[str, object]:
    """The JSON object that somebody sent, of which others would read the same, and which can be sent on.

    Raises:
        UnreadableDocument: it is none: not UTF-8, a name comes twice in an object, or there is half a character or
            a number that is none in it.
    """
    try:
        document = json.loads(
            content.decode("utf-8-sig"), object_pairs_hook=each_once, parse_constant=_refuse_constant
        )
        if b"\\u" in content:
            json.dumps(document, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise UnreadableDocument(f"{str(error)[:200]}{_told_place(content)}") from error
    if not isinstance(document, dict):
        raise UnreadableDocument("it is not a JSON object")
    return document


class _NoNumber:
    """Stands for NaN, or for an infinite number."""


def _told_place(content: bytes) -> str:
    """Where the first thing is in a text in JSON that is no number or no text; empty where there is none.

    It takes no memory beside what the text becomes: a list may have millions of values.
    """
    try:
        document = json.loads(content.decode("utf-8-sig"), parse_constant=lambda name: _NoNumber())
    except (ValueError, RecursionError):
        return ""
    path: list[str] = []
    levels: list[Iterator[tuple[object, object]]] = [
        iter([("", document)])
    ]  # each as far as it was looked at
    while levels:
        for name, value in levels[-1]:
            if isinstance(value, _NoNumber) or not (_is_text(name) and _is_text(value)):
                place = ".".join([*path, str(name)[:_LONGEST_PART]][1:])
                return f", in {shown(place)}" if place else ""
            if isinstance(value, dict | list):
                path.append(str(name)[:_LONGEST_PART])
                levels.append(iter(value.items() if isinstance(value, dict) else enumerate(value)))
                break
        else:
            levels.pop()
            del path[-1:]
    return ""


def _is_text(value: object) -> bool:
    """Whether there is no half of a character in it; true of whatever is no text."""
    return not isinstance(value, str) or value.isascii() or not _HALVES.search(value)


def each_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    """A JSON object of these, none of whose names may come twice: readers differ in which of both they take.

    Raises:
        ValueError: one does.
    """
    found = dict(pairs)
    if len(found) != len(pairs):
        [(often, _)] = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"{shown(often)} comes twice in one object")
    return found


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a number")


def finite_number(value: object) -> float:
    """A number that a document holds, as a float.

    Raises:
        ValueError: it is none, or none that can be reckoned with.
    """
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise ValueError(f"{str(value)[:100]!r} is no number")
    try:
        number = float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise ValueError(f"a number has to be finite, and not {number}")
    return number


def _require_shallow(document: object, name: str) -> None:
    level: list[object] = [document]
    for _ in range(_DEEPEST):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise UnreadableDocument(f"{name} is nested deeper than {_DEEPEST} levels.")


def _inside(value: object) -> Iterable[object]:
    if isinstance(value, dict):
        return value.values()
    return value if isinstance(value, list) else ()
