"""What an event looks like to those who read it line by line."""

from __future__ import annotations

import json

from devicekit.server.events import event


def test_an_event_is_one_line_however_a_client_cuts_lines() -> None:
    text = "".join(map(chr, range(0x100))) + "\u2028\u2029 \u4f60"
    line, *rest = event({"text": text}).decode().splitlines()
    assert rest == [""]
    assert json.loads(line.removeprefix("data: ")) == {"text": text}
