"""Defaults for OpenAI's endpoints: what the model's makers recommend."""

from __future__ import annotations

import dataclasses

from devicekit.documents import finite_number, read_json
from devicekit.files import UnreadableFile
from devicekit.runners.checkpoint import ModelDirectory
from devicekit.scheduling.request import SamplingParams

_RECOMMENDED = ("temperature", "top_p", "top_k", "min_p", "repetition_penalty")


def sampling_defaults(directory: ModelDirectory, source: str) -> SamplingParams:
    """The parameters that generation_config.json recommends, if ``source`` is "model"; others are the engine's."""
    file = directory.path / "generation_config.json"
    if source != "model" or not file.is_file():
        return SamplingParams()
    try:
        document = read_json(file)
    except UnreadableFile:  # whoever opens the directory complains of it
        return SamplingParams()
    if not isinstance(document, dict):
        return SamplingParams()
    found: dict[str, float | int] = {}
    for name in _RECOMMENDED:
        try:
            value = finite_number(document.get(name))
        except ValueError:  # the request's own checks say what a number may be
            continue
        found[name] = max(0, int(value)) if name == "top_k" else value
    return dataclasses.replace(SamplingParams(), **found)  # type: ignore[arg-type]  # names are those above
