"""What a device does, in a few minutes, part by part, with evidence on disk from the first one on.

::

    python -m devicekit.devtools.certify --plugins plugins --out docs/results

Needs no network and no installation: only torch, pluggy, packaging and, for the parts with an engine, numpy,
safetensors, tokenizers and transformers. Each part is a module in `parts`, runs in a process of its own under its
own time limit, and can be left out by name.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from devicekit.devtools.certify.part import PARTS, Part
from devicekit.devtools.certify.record import Check, Findings, Number, Outcome, Skipped, Status
from devicekit.front_door import front_door

if TYPE_CHECKING:
    from devicekit.devtools.certify.ground import Ground

__all__ = ["PARTS", "Check", "Findings", "Ground", "Number", "Outcome", "Part", "Skipped", "Status"]

# What runs the parts must live on where torch cannot be imported.
__getattr__, __dir__ = front_door(__name__, {"devicekit.devtools.certify.ground": ("Ground",)})
