"""The table of what was tested on what says what the records say, and no more."""

from __future__ import annotations

import json
from pathlib import Path

from devicekit.devtools.certify import Outcome, Status
from devicekit.devtools.certify.pages import Document, write
from devicekit.devtools.certify.surroundings import Surroundings
from tools.tested import PAGE, first_party, page


def record(folder: Path, name: str, *, rehearsal: bool) -> None:
    info = Outcome(
        "info", Status.PASSED, notes=["backend: 'acme' (acme 1.0)", "device: Acme One", "driver: 7.1"]
    )
    judged = Outcome(
        "conformance", Status.FAILED, notes=["verdict: non-conformant; tier: none; probe: suite"]
    )
    write(Document(Surroundings.now([]), rehearsal, [info, judged]), folder, name)


def test_the_page_is_the_one_that_the_records_make():
    assert PAGE.read_text(encoding="utf-8") == page(PAGE.parent, first_party())


def test_a_record_is_a_row_with_device_versions_and_verdict(tmp_path):
    record(tmp_path, "acme-one", rehearsal=False)
    (tmp_path / "other.json").write_text(json.dumps({"schema": "another"}))
    text = page(tmp_path, ["acme", "cpu", "other"])
    (row,) = [line for line in text.splitlines() if "acme-one" in line]
    for word in ("acme", "Acme One", "7.1", "1 passed, 1 failed", "non-conformant"):
        assert word in row
    assert "rehearsal" not in row
    assert [line for line in text.splitlines() if line.startswith("| other | none |")]
    assert not [line for line in text.splitlines() if line.startswith(("| cpu |", "| acme | none"))]


def test_a_rehearsal_is_no_test_of_a_backend(tmp_path):
    record(tmp_path, "acme-try", rehearsal=True)
    text = page(tmp_path, ["acme"])
    assert "Acme One (*rehearsal*)" in text
    assert "| acme | none |" in text
