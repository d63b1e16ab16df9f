"""An operator's hour, by what its page says: every step's answer is the one that is told."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

from tests.docs.blocks import CHECKOUT, blocks_of

PAGE = CHECKOUT / "docs" / "tutorials" / "serve.md"


def documents(text: str) -> list[dict[str, Any]]:
    """The JSON objects in what a terminal shows, one after the other."""
    found: list[dict[str, Any]] = []
    decoder, at = json.JSONDecoder(), text.find("{\n")
    while at >= 0:
        one, at = decoder.raw_decode(text, at)
        found.append(one)
        at = text.find("{\n", at)
    return found


@pytest.mark.parametrize("served", [PAGE], ids=lambda page: page.name, indirect=True)
def test_an_operator_sees_what_the_page_says(
    served: str, scratch: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("no_proxy", "*")
    shown = []
    for block in blocks_of(PAGE):
        if block.needs == "server":
            done = subprocess.run(
                ["bash", "-euo", "pipefail", "-c", block.text.replace("30000", served)],
                cwd=scratch,
                capture_output=True,
                text=True,
                timeout=300,
                check=False,
            )
            assert done.returncode == 0, f"{block}: {done.stdout}{done.stderr}"
            shown.append(done.stdout)
    serve, steer, flush, watch, end = shown
    first = documents(serve)[1]
    *verbs, model = documents(steer)
    assert all(one.get("success", one.get("status") == "ok") for one in verbs)
    assert model["weight_version"] == "v2"
    second, third, flushed = documents(flush)
    assert second["choices"][0]["text"] == third["choices"][0]["text"] != first["choices"][0]["text"]
    cached = [one["usage"]["prompt_tokens_details"]["cached_tokens"] for one in (second, third)]
    assert cached == [0, 16]
    assert flushed["success"]
    assert flushed["pages_freed"] > 0
    assert 'devicekit_pages{state="free"}' in watch
    assert documents(watch)[0]["loads"][0]["pools"]["pages_missing"] == 0
    assert documents(end)[0]["success"]
