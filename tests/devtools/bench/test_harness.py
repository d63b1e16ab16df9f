from __future__ import annotations

import json

import pytest

from devicekit.devtools.bench.__main__ import SUITES, main
from devicekit.devtools.bench.chat import PAGE_SIZE, chat_trace, replay
from devicekit.devtools.bench.harness import Peer, Row, Yardstick, as_json, as_table, time_us, timed_row
from devicekit.memory.audit import audit
from devicekit.memory.pages import PageAllocator
from devicekit.memory.prefix import PrefixCache


def test_a_row_compares_multiples_of_the_yardstick_not_times() -> None:
    here = Yardstick.ADD.here_us
    row = timed_row("case", 2 * here, peer=Peer("peer", 20 * Yardstick.ADD.reference_us), target=9)
    assert row.multiple == pytest.approx(2)
    assert row.advantage == pytest.approx(10)
    assert row.met is True
    assert timed_row("case", here, peer=Peer("peer", 1e-6), target=9).met is False


def test_without_a_peer_the_target_is_the_most_a_value_may_be() -> None:
    assert Row("case", 1.4, "x", target=1.5).met is True
    assert Row("case", 1.6, "x", target=1.5).met is False
    assert Row("case", 1.6, "x").met is None
    assert Row("case", 1.6, "x").advantage is None


def test_table_and_json_carry_every_row_and_what_was_missed() -> None:
    rows = [Row("good", 1.0, "B", target=5), Row("bad", 9.0, "B", target=5)]
    good, bad = as_table(rows).splitlines()[2:4]
    assert good.endswith("yes")
    assert bad.endswith("NO")
    document = json.loads(as_json(rows))
    assert [(row["case"], row["met"]) for row in document["rows"]] == [("good", True), ("bad", False)]
    assert document["yardsticks_us"][Yardstick.ADD.title] > 0


def test_more_work_takes_more_time() -> None:
    numbers = {"numbers": list(range(4000))}
    assert time_us("sum(numbers)", numbers) > 4 * time_us("sum(numbers[:100])", numbers)


def test_the_command_fails_when_a_target_is_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SUITES, "pools", lambda: [Row("too big", 9.0, "B", target=5)])
    assert main(["pools"]) == 1
    assert "too big" in capsys.readouterr().out
    monkeypatch.setitem(SUITES, "pools", lambda: [Row("small", 1.0, "B", target=5)])
    assert main(["pools"]) == 0


@pytest.mark.parametrize("share", [1.0, 0.3])
def test_the_chat_trace_conserves_pages_and_finds_what_was_said_before(share: float) -> None:
    turns = chat_trace(conversations=60)
    pages = int(share * 60 * 145)
    pool = PageAllocator(pages)
    cache = PrefixCache(pool, PAGE_SIZE)
    assert replay(turns, pool, cache) > 0
    assert audit(pool, owned=b"", cache=cache).balanced
    assert cache.stats.hit_rate is not None
    assert cache.stats.hit_rate > 0.6
    assert (cache.stats.evicted_pages > 0) == (share < 1)
