"""The snippets of docs/flush.md run as they stand there, one after the other."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from devicekit.engine import Engine, EngineConfig
from tests.server.conftest import Models, Serve

PAGE = (Path(__file__).parents[2] / "docs" / "flush.md").read_text(encoding="utf-8")


def test_every_snippet_runs(serve: Serve, models: Models, capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine.open(models.a, "cpu", config=EngineConfig(kv_tokens=1024))
    snippets = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    assert len(snippets) >= 7
    with serve() as server:
        names = {"engine": engine, "server": server.http}
        for snippet in snippets:
            exec(compile(snippet, "docs/flush.md", "exec"), names)
    printed = capsys.readouterr().out
    assert "cached pages forgotten" in printed
    assert "running=1" in printed
