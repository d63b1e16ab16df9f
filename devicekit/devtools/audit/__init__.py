"""Finds code that names a vendor: what stands between an engine and the next accelerator."""

from __future__ import annotations

from devicekit.devtools.audit.report import AuditReport
from devicekit.devtools.audit.rules import RULES, Finding, Rule, findings_in
from devicekit.devtools.audit.scan import audit

__all__ = ["RULES", "AuditReport", "Finding", "Rule", "audit", "findings_in"]
