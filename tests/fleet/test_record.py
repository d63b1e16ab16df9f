"""What a fleet remembers, in a file that somebody has spoilt, or that cannot be written."""

from __future__ import annotations

import json
import random
from dataclasses import asdict
from pathlib import Path

import pytest

from devicekit.contract.errors import ConfigurationError
from devicekit.fleet import FleetRecord, FleetUpdate, Phase, Served, open_record
from devicekit.fleet.errors import RecordNotWritten
from devicekit.fleet.record import Update
from tests.fleet.test_update import adopt, engines, has, quiet, steer
from tests.seeds import drawn_seed

WHOLE = FleetRecord(
    "f" * 32,
    ("http://one", "http://two"),
    Served("v1", "/models/v1", "abc"),
    Update("u", "/models/v2", "v2", Phase.WRITING, True, False, "", ("http://one",)),
    ("http://two",),
)
JUNK: tuple[object, ...] = (None, True, 0, -1, 1.5, "", "x", [], ["x"], [None], {}, {"x": 1}, [[]])


def _spoilt(rng: random.Random, document: dict[str, object]) -> str:
    """A value of another type, a field too many or too few, or a text that ends early."""
    at: dict[str, object] = document
    nested = [one for one in document.values() if isinstance(one, dict)]
    if rng.random() < 0.6:
        at = rng.choice(nested)
    key = rng.choice([*at])
    match rng.randrange(4):
        case 0:
            at[key] = rng.choice(JUNK)
        case 1:
            at[f"{key} of a later version"] = rng.choice(JUNK)
        case 2:
            del at[key]
        case 3:
            text = json.dumps(document)
            return text[: rng.randrange(len(text))]
    return json.dumps(document)


def test_a_file_that_somebody_has_spoilt_is_refused_or_means_what_it_says(tmp_path: Path) -> None:
    seed = drawn_seed("FLEET_RECORD_SEED")
    refused = 0
    for number in range(400):
        rng, path = random.Random(f"{seed} {number}"), tmp_path / f"fleet{number}"
        content = _spoilt(rng, json.loads(json.dumps(asdict(WHOLE))))
        path.write_text(content)
        try:
            with open_record(path, sourced=True) as file:
                read = json.loads(json.dumps(asdict(file.record)))
        except ConfigurationError:
            refused += 1
            assert path.read_text() == content, "what cannot be read is left as it is"
            continue
        said = json.loads(content)
        for name, value in asdict(WHOLE).items():
            if name in said and said[name] != ("" if name == "id" else None):
                assert _without_defaults(read[name], said[name]) == said[name], (seed, number, name, value)
    assert 100 < refused < 400


def _without_defaults(read: object, said: object) -> object:
    if isinstance(read, dict) and isinstance(said, dict):
        return {name: value for name, value in read.items() if name in said}
    return read


def test_a_verb_whose_file_cannot_be_written_ends_there_and_is_resumed(tmp_path: Path) -> None:
    members, file = engines(2, quiet()), tmp_path / "fleet"
    steer(file, members, adopt)
    (tmp_path / ".fleet.new").mkdir()  # in the way of whatever is written
    with pytest.raises(RecordNotWritten, match="left as it is"):
        steer(file, members, lambda fleet: FleetUpdate(fleet).all_at_once("/new", "v1"))
    assert has(members, "a")
    assert all(one.membership.steered_by is None for one in members)
    (tmp_path / ".fleet.new").rmdir()
    assert steer(file, members, lambda fleet: FleetUpdate(fleet).all_at_once("/new", "v1"))[0].success


def test_a_record_that_was_not_written_is_the_old_one(tmp_path: Path) -> None:
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / "fleet").write_text(json.dumps(asdict(WHOLE)))
    with open_record(folder / "fleet") as file:
        folder.rename(tmp_path / "elsewhere")
        with pytest.raises(RecordNotWritten):
            file.save(update=None)
        assert file.record == WHOLE
