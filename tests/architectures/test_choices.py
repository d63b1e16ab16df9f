"""A word of a config that chooses how a model computes: another is refused by name, or gives that one's tokens."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest
import torch
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

from tests.architectures.judge import Verdict, judge_directory
from tests.architectures.tiny import ARCHITECTURES, NoTinyModel, write_tiny

UNKNOWN = "unheard-of"
ROPE = {
    "factor": 2.0,
    "original_max_position_embeddings": 64,  # beyond which some kinds are not served
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
SAMPLE = ("llama", "gemma3_text", "phi3", "falcon")
Place = tuple[str, ...]


@pytest.fixture(autouse=True, scope="module")
def _one_thread() -> None:
    torch.set_num_threads(1)


def places(document: Mapping[str, object], within: Place = ()) -> Iterator[tuple[Place, str]]:
    """Where a config has words, and which; of a list the first."""
    for name, value in document.items():
        if isinstance(value, dict):
            yield from places(value, (*within, name))
        elif isinstance(value, list) and value and isinstance(value[0], str):
            yield (*within, name), value[0]
        elif isinstance(value, str) and name != "transformers_version":
            yield (*within, name), value


def words(place: Place, now: str) -> Iterator[str]:
    """Others that could stand there."""
    yield UNKNOWN
    name = place[-1]
    if name == "rope_type":
        yield from sorted({"default", *ROPE_INIT_FUNCTIONS} - {now})
    elif "act" in name:
        yield from {"relu", "gelu"} - {now}
    elif name == "layer_types":
        yield from {"full_attention", "sliding_attention", "chunked_attention"} - {now}
    elif name == "dtype":
        yield from ("float64", "float32x", "int8")


def changed(document: Mapping[str, object], place: Place, word: str) -> dict[str, object]:
    """The config with another word there, and with whatever kinds of rotary embeddings may ask for besides."""
    made: dict[str, object] = copy.deepcopy(dict(document))
    part: dict[str, object] = made
    for name in place[:-1]:
        part = part[name]  # type: ignore[assignment]
    last = place[-1]
    here = part[last]
    part[last] = [word, *here[1:]] if isinstance(here, list) else word
    if last == "rope_type" and word != UNKNOWN:
        head = document.get("head_dim")
        count = head // 2 if isinstance(head, int) else 4
        part.update(ROPE, short_factor=[1.0] * count, long_factor=[2.0] * count)
    return made


def faults(architecture: str, folder: Path) -> Iterator[str]:
    """What is neither refused by name nor has the model's own tokens."""
    path = write_tiny(architecture, folder)
    file = path / "config.json"
    document = json.loads(file.read_text())
    for place, now in places(document):
        for word in words(place, now):
            file.write_text(json.dumps(changed(document, place, word)))
            found = judge_directory(architecture, path)
            what = f"{'.'.join(place)} = {word}: {found.verdict.value}: {found.remark}"
            if found.verdict is Verdict.WRONG:
                yield what
            elif found.verdict is Verdict.REFUSED and ("\n" in found.remark or len(found.remark) > 900):
                yield f"more than a line: {what}"
            elif found.verdict is Verdict.REFUSED and word == UNKNOWN and not _says(found.remark, place):
                yield f"the setting is not named: {what}"


def _says(remark: str, place: Place) -> bool:
    """Whether a refusal names the word, and where it stands."""
    return UNKNOWN in remark and (place[-1] in remark or place == ("architectures",))


@pytest.mark.parametrize("architecture", SAMPLE)
def test_a_word_that_chooses_is_known_or_refused(architecture: str, tmp_path: Path) -> None:
    assert not list(faults(architecture, tmp_path))


@pytest.mark.thorough
@pytest.mark.parametrize("architecture", [one for one in ARCHITECTURES if one not in SAMPLE])
def test_a_word_that_chooses_is_known_or_refused_in_every_architecture(
    architecture: str, tmp_path: Path
) -> None:
    try:
        assert not list(faults(architecture, tmp_path))
    except NoTinyModel as error:
        pytest.skip(str(error))
