from __future__ import annotations

import json
from pathlib import Path

import pytest

from bench.__main__ import SUITES, main
from bench.harness import Row, Timing, Yardstick, timed_row
from bench.report import as_curves, as_json, as_page, as_table


def _curve(multiples: dict[int, float]) -> list[Row]:
    return [timed_row(f"at {at}", Timing(1.0, size), curve="cost", at=at) for at, size in multiples.items()]


def test_table_and_json_carry_every_row_and_what_was_missed() -> None:
    rows = [Row("good", 1.0, "B", target=5), Row("bad", 9.0, "B", target=5)]
    good, bad = as_table(rows).splitlines()[2:4]
    assert good.endswith("yes")
    assert bad.endswith("NO")
    document = json.loads(as_json(rows))
    assert [(row["case"], row["met"]) for row in document["rows"]] == [("good", True), ("bad", False)]
    assert document["yardsticks_us"][Yardstick.ADD.title] > 0


def test_a_flat_curve_has_equal_bars_and_a_growing_one_grows() -> None:
    flat = as_curves(_curve({10_000: 5.0, 1_000_000: 5.0})).splitlines()
    assert flat[0] == "cost"
    assert len({line.count("#") for line in flat[1:]}) == 1
    ten, hundred, thousand = (
        line.count("#") for line in as_curves(_curve({1: 10.0, 2: 100.0, 3: 1000.0})).splitlines()[1:]
    )
    assert hundred - ten == pytest.approx(thousand - hundred, abs=1)
    assert as_curves([Row("of no curve", 1.0, "x")]) == ""


def test_the_page_names_its_command_and_each_missed_target() -> None:
    page = as_page({"pages": [Row("too big", 9.0, "B", target=5), Row("small", 1.0, "B", target=5)]})
    assert "python -m bench pages\n" in page
    assert "1 of 2 targets are met." in page
    assert "- missed: too big" in page
    assert "missed: small" not in page


def test_the_command_fails_when_a_target_is_missed(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.setitem(SUITES, "pages", lambda: [Row("too big", 9.0, "B", target=5)])
    written = [tmp_path / "rows.json", tmp_path / "page.md"]
    assert main(["pages", "--json", str(written[0]), "--markdown", str(written[1])]) == 1
    assert "too big" in capsys.readouterr().out
    assert all("too big" in path.read_text() for path in written)
    monkeypatch.setitem(SUITES, "pages", lambda: [Row("small", 1.0, "B", target=5)])
    assert main(["pages"]) == 0


def test_an_unknown_suite_is_answered_with_those_there_are(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["pools"])
    told = capsys.readouterr().err
    assert all(name in told for name in ("pools", *SUITES))
