"""The same engine on any device that devicekit opens: `before`, rewritten by the audit and finished by hand."""
