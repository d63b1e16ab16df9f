"""The parts, in the order in which they run: short ones first, last the suite, which takes what time is left."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, cast

if TYPE_CHECKING:
    from devicekit.devtools.certify.ground import Ground
    from devicekit.devtools.certify.record import Findings

_ROOM = "devicekit.devtools.certify.parts"


@dataclass(frozen=True, slots=True)
class Part:
    """One part, which is a module with a function ``run(ground, findings)``, imported in its own process only."""

    name: str
    sentence: str  # what it shows
    limit: float  # seconds
    needs: tuple[str, ...] = ()  # packages without which it is skipped
    module: str = ""  # default: the part's name, in `parts`

    def load(self) -> Callable[[Ground, Findings], None]:
        """The part's function."""
        module = importlib.import_module(self.module or f"{_ROOM}.{self.name}")
        return cast("Callable[[Ground, Findings], None]", module.run)


_ENGINE = ("numpy", "safetensors", "tokenizers", "transformers")

PARTS: tuple[Part, ...] = (
    Part("info", "which backend was chosen and why, its device, hooks and memory", 45),
    Part("tokens", "an engine's tokens equal the host's and transformers' own", 75, _ENGINE),
    Part("out_of_memory", "running out of memory is recognised and recovered from", 30),
    Part("streams", "streams and events order work, and copies overlap with it", 30),
    Part("graphs", "a decode loop captured as a graph gives equal tokens", 30),
    Part("updates", "a hundred weight updates in place leave reserved memory flat", 75, _ENGINE),
    Part(
        "occupation", "released memory reaches the driver, and resuming brings the tokens back", 45, _ENGINE
    ),
    Part("overhead", "the share of a decode step that is not its forward pass", 60, _ENGINE),
    Part("throughput", "tokens a second, beside transformers' own continuous batching", 75, _ENGINE),
    Part("doctor", "nothing serious is wrong with the installation", 120),
    Part("conformance", "the whole conformance suite, by its own probe", 420, ("pytest", "numpy")),
)
