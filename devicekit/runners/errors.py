"""Why a model cannot be opened, served or updated.

::

    DeviceKitError
    └── ModelError                  has ``path``, the model directory in question
        ├── InvalidModelDirectory   no directory, no config, no safetensors, or files that cannot be read
        ├── UnsupportedModel        the directory is sound, and this runner cannot serve what is in it
        ├── MissingTokenizer        text was asked for, and the directory has no tokenizer
        ├── CheckpointMismatch      new weights do not fit the loaded model; the old ones are untouched
        └── MissingDependency       an optional package that runners need is not installed
"""

from __future__ import annotations

from collections.abc import Sequence

from devicekit.contract.errors import DeviceKitError


class ModelError(DeviceKitError):
    """Root of the errors about a model. ``path`` is its directory, or empty."""

    def __init__(self, message: str, *, path: str = "") -> None:
        super().__init__(message)
        self.path = path


class InvalidModelDirectory(ModelError):
    """There is no directory, config or safetensors file, or one of them cannot be read."""


class UnsupportedModel(ModelError):
    """The directory is sound, and this runner cannot serve what is in it."""


class MissingTokenizer(ModelError):
    """Text was asked for, and the directory has no tokenizer that can be loaded."""


class CheckpointMismatch(ModelError):
    """New weights do not fit the loaded model, which was left as it was. ``problems`` lists every reason."""

    def __init__(self, message: str, *, path: str = "", problems: tuple[str, ...] = ()) -> None:
        super().__init__(message, path=path)
        self.problems = problems


class MissingDependency(ModelError):
    """A package that runners need is not installed."""


def first_few(problems: Sequence[str]) -> str:
    """The first three problems, and how many more there are."""
    shown = "; ".join(problems[:3])
    return shown if len(problems) <= 3 else f"{shown}; and {len(problems) - 3} more"


def one_line(error: BaseException) -> str:
    """The first line of an error's message, and the next where that announces it: the rest is in the cause."""
    lines = [line.strip() for line in (str(error).strip() or type(error).__name__).splitlines()]
    return " ".join(lines[:2]) if lines[0].endswith(":") else lines[0]
