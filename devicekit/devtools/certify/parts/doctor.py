"""What the doctor finds wrong with the installation."""

from __future__ import annotations

from devicekit.devtools.certify.ground import Ground
from devicekit.devtools.certify.record import Findings
from devicekit.devtools.doctor.diagnosis import diagnose


def run(ground: Ground, findings: Findings) -> None:
    """One diagnosis; everything wrong is noted, and nothing serious may be."""
    diagnosis = diagnose(timeout=max(5.0, ground.left / 3))
    for one in diagnosis.problems:
        findings.note(f"{'serious' if one.serious else 'minor'}: {one.what} {one.remedy}")
    serious = [one.what for one in diagnosis.problems if one.serious]
    findings.number("backends found", len(diagnosis.backends), "")
    findings.check("nothing serious is wrong", not serious, "; ".join(serious))
