from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

from devicekit.devtools.reference import write_model
from tests.scheduling.processes import Worlds
from tests.tensor_parallel.models import MODELS

Written = Callable[..., str]


@pytest.fixture(scope="session")
def worlds() -> Iterator[Worlds]:
    """Processes of so many ranks, started when they are first asked for."""
    worlds = Worlds()
    yield worlds
    worlds.close()


@pytest.fixture(scope="session")
def written(tmp_path_factory: pytest.TempPathFactory) -> Written:
    """``written(model, seed=1)``: the directory of one of `MODELS`, which tests must not change."""

    @cache
    def write(model: str, seed: int = 1) -> str:
        architecture, settings = MODELS[model]
        root: Path = tmp_path_factory.mktemp("model")
        return str(write_model(root, seed=seed, architecture=architecture, settings=settings))

    return write
