"""Something to compare an engine with: a small real model made on the spot, and what transformers says of it."""

from devicekit.devtools.reference.example_model import write_model
from devicekit.devtools.reference.noise import noisy_copy
from devicekit.devtools.reference.oracle import Comparison, Oracle, own_model

__all__ = ["Comparison", "Oracle", "noisy_copy", "own_model", "write_model"]
