"""The small files of a model directory: each is read once, and all are of the same moment."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from devicekit.files import ChangingFile, Stamp, UnreadableFile, read_steady
from devicekit.runners.errors import InvalidModelDirectory, one_line
from devicekit.runners.passing import passing_directory

_LONGEST = 64 << 20  # bytes of one document in JSON
_LONGEST_OF_TOKENIZER = 256 << 20
_MOST_FILES = 1000
_OF_TOKENIZERS = frozenset(
    {".json", ".txt", ".jinja", ".model", ".tiktoken", ".vocab", ".bpe", ".spm", ".jsonl", ".yaml", ".tsv"}
)
_TEMPLATES = "additional_chat_templates"  # the one folder below that is read


class Documents:
    """Reads files of one directory, and remembers what they were.

    Args:
        root: the directory.
        within: directories in which the files have to lie, links followed; none: anywhere.
    """

    def __init__(self, root: Path, within: Sequence[str] = ()) -> None:
        self.root = root
        self._within = within
        self._read: dict[str, bytes] = {}
        self._stamps: dict[str, Stamp] = {}

    def has(self, name: str) -> bool:
        """Whether there is a file of this name, of whatever kind."""
        return name in self._read or (self.root / name).exists()

    def json(self, name: str) -> Mapping[str, Any]:
        """A document, which must be a JSON object.

        Raises:
            InvalidModelDirectory: there is none, or it cannot be read.
        """
        where = self.root / name
        if name not in self._read and not self.has(name):
            raise InvalidModelDirectory(f"{self.root} has no {name}", path=str(self.root))
        try:
            document = json.loads(self._content(name, _LONGEST).decode())
        except (UnreadableFile, ValueError, RecursionError) as error:
            raise InvalidModelDirectory(
                f"{where} cannot be read: {one_line(error)[:300]}", path=str(self.root)
            ) from error
        if not isinstance(document, dict):
            raise InvalidModelDirectory(f"{where} is not a JSON object", path=str(self.root))
        return document

    def require_unchanged(self) -> None:
        """Raise `InvalidModelDirectory` unless every file that was read is still what it was."""
        for name, stamp in self._stamps.items():
            try:
                if Stamp.at(self.root / name) != stamp:
                    raise ChangingFile(f"{self.root / name} was written to or replaced while it was read.")
            except UnreadableFile as error:
                raise InvalidModelDirectory(str(error), path=str(self.root)) from error

    @contextmanager
    def private_copy(self, *names: str) -> Iterator[Path]:
        """A directory of this process alone that holds a copy of some files, or of all that make a tokenizer.

        Raises:
            InvalidModelDirectory: one of them cannot be read, changes meanwhile, or there is no room for the copy.
        """
        try:
            contents = {
                name: self._content(name, _LONGEST_OF_TOKENIZER)
                for name in names or self._names_for_tokenizers()
            }
            self.require_unchanged()
        except (UnreadableFile, OSError) as error:
            raise InvalidModelDirectory(str(error), path=str(self.root)) from error
        with _written(contents) as private:
            yield private

    def _names_for_tokenizers(self) -> list[str]:
        folders = [self.root, self.root / _TEMPLATES]
        found = [
            one.relative_to(self.root).as_posix()
            for folder in folders
            for one in (sorted(folder.iterdir()) if folder.is_dir() else ())
            if one.suffix in _OF_TOKENIZERS and one.exists() and not one.is_dir()
        ]
        names = [name for name in found if not name.endswith(".safetensors.index.json")]
        if len(names) > _MOST_FILES:
            raise UnreadableFile(
                f"{self.root} has {len(names)} files beside its weights; {_MOST_FILES} may be read."
            )
        return names

    def _content(self, name: str, limit: int) -> bytes:
        if name not in self._read:
            self._read[name], self._stamps[name] = read_steady(self.root / name, limit, self._within)
        return self._read[name]


@contextmanager
def _written(contents: Mapping[str, bytes]) -> Iterator[Path]:
    """A directory that holds these files: in the usual place, or in memory where that is full."""
    places = (None, "/dev/shm")
    for place in places:
        with passing_directory(place) as made:
            try:
                for name, content in contents.items():
                    (made / name).parent.mkdir(exist_ok=True)
                    (made / name).write_bytes(content)
            except OSError as error:
                if place == places[-1] or not Path(str(places[-1])).is_dir():
                    raise InvalidModelDirectory(f"There is no room to copy a tokenizer: {error}") from error
                continue
            yield made
            return
