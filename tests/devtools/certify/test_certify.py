"""The script that puts a device to the test: every part in its own process, evidence whatever becomes of it."""

from __future__ import annotations

import json
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from devicekit.contract.errors import ConfigurationError
from devicekit.devtools.certify import PARTS, Check, Findings, Number, Outcome, Part, Skipped, Status
from devicekit.devtools.certify.__main__ import main
from devicekit.devtools.certify.checkout import search_path
from devicekit.devtools.certify.pages import Document, as_html, as_markdown, write
from devicekit.devtools.certify.parts import conformance, throughput
from devicekit.devtools.certify.running import Plan, run
from devicekit.devtools.certify.surroundings import Surroundings
from devicekit.registry.discovery import discover

ROOT = Path(__file__).parents[3]
PLUGINS = ROOT / "plugins"

_FATES = {
    "crash": "import os, signal\n    os.kill(os.getpid(), signal.SIGSEGV)",
    "leave": "import os\n    os._exit(3)",
    "hang": "import signal, time\n    signal.signal(signal.SIGINT, signal.SIG_IGN)\n    time.sleep(600)",
    "crash-judged": "import os\n    findings.check('one is one', True)\n    findings.judge()\n    os.abort()",
    "wrong": "findings.check('two is one', False)",
    "undecided": "findings.check('something', None, 'nobody knows')",
    "raises": "raise OSError('no such thing')",
    "absent": "from devicekit.devtools.certify.record import Skipped\n    raise Skipped('there is none')",
    "right": "findings.check('one is one', True)",
}


def outcomes(tmp_path: Path, *fates: str, limit: float = 120.0, seconds: float = 600.0) -> list[Outcome]:
    for fate in fates:
        source = f"def run(ground, findings):\n    findings.number('before', 7, 'B')\n    {_FATES[fate]}\n"
        (tmp_path / f"fate_{fate}.py").write_text(source)
    parts = [Part(fate, "", limit, module=f"fate_{fate}") for fate in fates]
    scratch = tmp_path / "scratch"
    scratch.mkdir()
    return list(run(Plan(parts, None, False, seconds, 1.0, frozenset(), [tmp_path], scratch)))


def test_what_crashes_or_leaves_costs_itself_and_keeps_what_it_had_found(tmp_path):
    crashed, left, right = outcomes(tmp_path, "crash", "leave", "right")
    assert (crashed.status, left.status, right.status) == (Status.FAILED, Status.FAILED, Status.PASSED)
    assert "SIGSEGV" in crashed.reason
    assert "status 3" in left.reason
    for one in (crashed, left, right):
        assert one.numbers == [Number("before", 7, "B")]
        assert one.cpu_seconds is not None


def test_what_hangs_is_ended_at_its_limit_though_it_hears_no_signal(tmp_path, monkeypatch):
    monkeypatch.setattr("devicekit.devtools.certify.running._GRACE", 0.2)
    (hung,) = outcomes(tmp_path, "hang", limit=15.0)
    assert hung.status is Status.FAILED
    assert "15 s" in hung.reason


def test_what_ends_badly_after_its_verdict_keeps_it(tmp_path):
    (judged,) = outcomes(tmp_path, "crash-judged")
    assert judged.status is Status.PASSED


def test_a_peer_begins_when_what_is_our_own_is_judged(tmp_path, monkeypatch):
    findings, seen = Findings("throughput", tmp_path / "outcome.json"), []

    class Engine:
        def generate(self, asked, *, max_new_tokens, **_):
            return [SimpleNamespace(tokens=[1] * max_new_tokens) for _ in asked]

    def peer(*_):
        seen.append(Outcome.from_data(json.loads((tmp_path / "outcome.json").read_text())))
        return 5.0

    monkeypatch.setattr(throughput, "open_engine", lambda *_, **__: Engine())
    monkeypatch.setattr(throughput, "_peer", peer)
    ground = SimpleNamespace(
        real=False, dtype=None, model=lambda size: tmp_path, device=SimpleNamespace(empty_cache=lambda: None)
    )
    throughput.run(cast("Any", ground), findings)
    (before,) = seen
    assert before.status is Status.PASSED
    assert "no figure" in before.notes[-1]
    assert not any("no figure" in note for note in findings.outcome.notes)
    assert Number("transformers, continuous batching", 5.0, "tokens/s") in findings.outcome.numbers


@pytest.mark.parametrize(
    ("index", "before", "expected"),
    [
        (0, None, {}),
        (1, None, {"ACME_VISIBLE_DEVICES": "1"}),
        (1, "4, 7,9", {"ACME_VISIBLE_DEVICES": "7"}),
    ],
)
def test_the_suite_judges_the_device_that_is_put_to_the_test(monkeypatch, index, before, expected):
    device = SimpleNamespace(index=index, visible_devices_variable=lambda: "ACME_VISIBLE_DEVICES")
    if before is None:
        monkeypatch.delenv("ACME_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("ACME_VISIBLE_DEVICES", before)
    assert conformance.alone(cast("Any", device)) == expected


def test_a_device_that_the_suite_cannot_reach_is_not_judged_by_another():
    device = SimpleNamespace(index=1, torch_device="acme:1", visible_devices_variable=lambda: None)
    with pytest.raises(Skipped, match="acme:1"):
        conformance.alone(cast("Any", device))


def test_a_part_ends_as_its_checks_say(tmp_path):
    wrong, undecided, raised, absent = outcomes(tmp_path, "wrong", "undecided", "raises", "absent")
    assert (wrong.status, wrong.reason) == (Status.FAILED, "not so: two is one")
    assert undecided.status is Status.SKIPPED
    assert "nobody knows" in undecided.reason
    assert (raised.status, raised.reason) == (Status.FAILED, "OSError: no such thing")
    assert any("Traceback" in note for note in raised.notes)
    assert (absent.status, absent.reason) == (Status.SKIPPED, "there is none")


def test_what_there_is_no_time_for_is_said_to_be_skipped(tmp_path):
    (late,) = outcomes(tmp_path, "right", seconds=1.0)
    assert late.status is Status.SKIPPED
    assert "no time" in late.reason


def test_a_run_on_the_host_writes_its_pages_and_skips_what_was_left_out(tmp_path, capsys):
    arguments = ["--device", "cpu", "--plugins", str(PLUGINS), "--only", "info", "--out", str(tmp_path)]
    assert main([*arguments, "--patience", "5", "--name", "host"]) == 0
    record = json.loads((tmp_path / "host.json").read_text())
    ended = {one["part"]: one["status"] for one in record["outcomes"]}
    assert ended == {part.name: "passed" if part.name == "info" else "skipped" for part in PARTS}
    assert record["device"]["backend"].startswith("'cpu'")
    assert record["surroundings"]["packages"]["torch"]
    page = (tmp_path / "host.md").read_text()
    assert "driver: total" in page
    assert str(ROOT) not in page
    assert "1 passed, 0 failed" in capsys.readouterr().out


def test_a_part_that_does_not_exist_is_wrong_usage(tmp_path, capsys):
    assert main(["--only", "nothing", "--out", str(tmp_path)]) == 2
    assert "there is no part nothing; there are info" in capsys.readouterr().err


def test_projects_of_a_folder_are_found_as_if_installed(tmp_path, monkeypatch):
    project = tmp_path / "work" / "acme"
    (project / "acme_backend").mkdir(parents=True)
    (project / "pyproject.toml").write_text(
        '[project]\nname = "devicekit-acme"\nversion = "3.1"\ndependencies = ["devicekit>=0.1"]\n'
        '[project.entry-points."devicekit.backends"]\nacme = "acme_backend:Backend"\n'
    )
    (project / "acme_backend" / "__init__.py").touch()
    (project / "acme_backend" / "backend.toml").write_text(
        '[backend]\nname = "acme"\ndevice_type = "cpu"\ncontract = ">=1.0,<2"\n'
    )
    for folder in reversed(search_path([tmp_path / "work"], tmp_path / "metadata")):
        monkeypatch.syspath_prepend(str(folder))
    (found,) = [one for one in discover() if one.name == "acme"]
    assert (found.distribution, found.version, found.error) == ("devicekit-acme", "3.1", None)
    assert metadata.requires("devicekit-acme") == ["devicekit>=0.1"]


def test_a_folder_without_a_project_is_refused(tmp_path):
    with pytest.raises(ConfigurationError, match=r"no project in .*pyproject\.toml"):
        search_path([tmp_path], tmp_path / "metadata")


def test_pages_say_what_is_unknown_and_that_a_rehearsal_is_one(tmp_path):
    outcome = Outcome("streams", Status.FAILED, "not so: <a | b>", 1.5, 0.5)
    outcome.numbers += [Number("bandwidth", None, "GB/s"), Number("copied", 1 << 20, "B")]
    outcome.checks += [Check("order is kept", False, "at <step> 3"), Check("copies overlap", None)]
    document = Document(Surroundings.now(["--device", "acme"]), rehearsal=True, outcomes=[outcome])
    page, html = as_markdown(document), as_html(document)
    assert "| bandwidth | unknown |" in page
    assert "| copied | 1,048,576 B |" in page
    assert "<a \\| b>" in page
    assert "A rehearsal: no accelerator" in page
    assert "&lt;step&gt;" in html
    assert "--device acme" in html
    written = write(document, tmp_path, "x")
    assert sorted(path.name for path in written) == ["x.html", "x.json", "x.md"]
    assert Outcome.from_data(json.loads((tmp_path / "x.json").read_text())["outcomes"][0]) == outcome
    assert sorted(path.name for path in tmp_path.iterdir()) == ["x.html", "x.json", "x.md"]
