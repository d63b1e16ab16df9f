"""``devicekit top`` drawn with rich, over and over."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from rich.live import Live
from rich.panel import Panel
from rich.text import Text

from devicekit.commands.top_view import as_text
from devicekit.observe.timeline import Timeline


def show(look: Callable[[], Timeline], extra: Callable[[], Sequence[str]], wait: Callable[[], None]) -> None:
    """Draw what ``look`` finds until ``wait`` raises, as it does when the user presses Ctrl-C."""

    def picture() -> Panel:
        return Panel(Text(as_text(look(), extra())), title="devicekit top", title_align="left")

    with Live(picture(), auto_refresh=False) as live:
        while True:
            wait()
            live.update(picture(), refresh=True)
