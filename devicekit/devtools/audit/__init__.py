"""Finds code that names a vendor, and rewrites what is certain: the way to the next accelerator."""

from __future__ import annotations

from devicekit.devtools.audit.accepted import Accepted
from devicekit.devtools.audit.cache import Cache
from devicekit.devtools.audit.findings import RULES, Finding, Rule
from devicekit.devtools.audit.mend import Mended, mend
from devicekit.devtools.audit.report import AuditReport
from devicekit.devtools.audit.rules import findings_in
from devicekit.devtools.audit.scan import audit
from devicekit.devtools.audit.table import REPLACEMENTS, Replacement

__all__ = [
    "REPLACEMENTS",
    "RULES",
    "Accepted",
    "AuditReport",
    "Cache",
    "Finding",
    "Mended",
    "Replacement",
    "Rule",
    "audit",
    "findings_in",
    "mend",
]
