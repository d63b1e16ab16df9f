"""The operators that an engine sends to a device: which they are, and whether a device gives the host's results.

`sent` lists them, found by tracing an engine; `cases` makes inputs of their kinds; `comparing` runs them on host
and device. The list is written by ``python -m tools.sent_operators --write`` and never by hand.
"""

from __future__ import annotations

from devicekit_conformance.operators.cases import FAMILIES, family_of
from devicekit_conformance.operators.comparing import faults_of
from devicekit_conformance.operators.sent import Sent, sent

__all__ = ["FAMILIES", "Sent", "family_of", "faults_of", "sent"]
