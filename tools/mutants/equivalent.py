"""Mutants that are the same program in other words, or differ in speed alone: each with the reason."""

from __future__ import annotations

EQUIVALENT: dict[str, str] = {}
"""By `Mutant.name`."""
