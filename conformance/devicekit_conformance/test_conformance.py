"""What ``pytest --pyargs devicekit_conformance`` collects: one item for each backend and requirement."""

from __future__ import annotations

from typing import TYPE_CHECKING

from devicekit_conformance.pytest_run import decide

if TYPE_CHECKING:
    from devicekit_conformance.session import Session


def test_requirement(dk_session: Session, dk_requirement: str) -> None:
    decide(dk_session, dk_requirement)
