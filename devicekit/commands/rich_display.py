"""The display drawn with rich: lines scroll by, and a progress bar stays at the bottom."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.padding import Padding
from rich.progress import BarColumn, MofNCompleteColumn, Progress, SpinnerColumn, TextColumn
from rich.text import Text

from devicekit.commands.demo_display import VerbLine

_INDENT = 33  # columns in front of an outcome


class RichDisplay:
    """A `Display` for terminals. Without a terminal it prints the same lines, uncoloured and without a bar."""

    def __init__(self) -> None:
        self._console = Console(highlight=False)
        self._progress = Progress(
            SpinnerColumn(),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("requests done; {task.description}"),
            console=self._console,
            transient=True,
        )
        self._task = self._progress.add_task("starting", total=None, visible=False)
        self._started = time.monotonic()

    def __enter__(self) -> RichDisplay:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def say(self, text: str) -> None:
        self._console.print(text, markup=False, soft_wrap=True)

    def record(self, line: VerbLine) -> None:
        text = Text(f"{time.monotonic() - self._started:6.2f} s  ", style="dim")
        text.append(f"{line.verb:<22} ", style="bold cyan")
        text.append(line.outcome, style="default")
        self._console.print(text, soft_wrap=True)
        if line.details:
            self._detail(Text(line.details, style="dim"))

    def _detail(self, text: Text) -> None:
        """Print below the outcome: wrapped on a terminal, and in one line where there is no width to wrap at."""
        if self._console.is_terminal:
            self._console.print(Padding(text, (0, 0, 0, _INDENT)))
        else:
            self._console.print(Text(" " * _INDENT).append_text(text), soft_wrap=True)

    def progress(self, done: int, total: int, note: str) -> None:
        self._progress.update(self._task, completed=done, total=total, description=note, visible=True)
