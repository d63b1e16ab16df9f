"""Says what is wrong with an installation, even where ``import torch`` fails."""

from __future__ import annotations

from devicekit.devtools.doctor.diagnosis import Diagnosis, diagnose

__all__ = ["Diagnosis", "diagnose"]
