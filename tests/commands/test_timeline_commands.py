"""``devicekit top`` and ``devicekit plot`` on recordings and on a device."""

from __future__ import annotations

from pathlib import Path

import pytest

from devicekit.cli import main
from devicekit.commands.top_view import as_text
from devicekit.observe import Mark, MarkKind, Sample, Timeline

MIB = 1 << 20


@pytest.fixture
def recording(tmp_path: Path) -> Path:
    path = tmp_path / "run.jsonl"
    Timeline(
        "npu:1",
        samples=[Sample(0.0, 8 * MIB, 16 * MIB, 64 * MIB, 128 * MIB), Sample(5.0, 8 * MIB, 32 * MIB, None)],
        marks=[Mark(4.0, MarkKind.VERB, "empty_cache", MIB, 0.001)],
    ).write(path)
    return path


def test_top_shows_the_latest_sample_and_marks(recording: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--follow", str(recording), "--once"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("npu:1  128.0 MiB  after 5.0 s")
    assert "32.0 MiB,  25% of 128.0 MiB" in shown
    assert "8.0 MiB,  25% of 32.0 MiB" in shown
    assert "in use, all processes    " + "·" * 40 + " unknown" in shown
    assert "▅█" in shown.replace("▄", "▅")
    assert "4.00 s  verb     empty_cache, 1 MiB handed back, 1.00 ms" in shown


def test_top_looks_at_a_device(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["top", "--device", "cpu", "--once"]) == 0
    shown = capsys.readouterr().out
    assert shown.startswith("cpu:0")
    assert "processes: unknown" in shown


def test_the_live_view_follows_a_growing_recording(
    recording: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def grow_or_stop(seconds: float) -> None:
        assert seconds == 0.5
        if "late" in recording.read_text():
            raise KeyboardInterrupt
        with recording.open("a") as file:
            file.write('{"at": 6.0, "kind": "note", "label": "late"}\n{"at": 7')

    monkeypatch.setattr("time.sleep", grow_or_stop)
    assert main(["top", "--follow", str(recording), "--interval", "0.5"]) == 130
    assert "6.00 s  note     late" in capsys.readouterr().out


def test_values_that_are_unknown_are_not_drawn_as_zero() -> None:
    shown = as_text(Timeline("cpu:0", samples=[Sample(0.0, None, None, None)]))
    assert "░" not in shown
    assert shown.count("unknown") == 5


@pytest.mark.parametrize(("name", "start"), [("m.html", b"<!DOCTYPE html>"), ("m.png", b"\x89PNG")])
def test_plot_draws(recording: Path, tmp_path: Path, name: str, start: bytes) -> None:
    assert main(["plot", str(recording), "-o", str(tmp_path / name)]) == 0
    assert (tmp_path / name).read_bytes().startswith(start)


def test_wrong_files_are_explained(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    missing = str(tmp_path / "missing.jsonl")
    assert main(["plot", missing, "-o", "x.html"]) == 1
    assert main(["top", "--follow", missing]) == 1
    assert capsys.readouterr().err.count("cannot be read") == 2


def test_plot_knows_two_formats(recording: Path) -> None:
    with pytest.raises(SystemExit):
        main(["plot", str(recording), "-o", "x.gif"])
