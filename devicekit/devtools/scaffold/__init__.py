"""Starts a backend of one's own: a package that installs, is accepted and runs on its first day."""

from __future__ import annotations

from devicekit.devtools.scaffold.package import Start, new_backend

__all__ = ["Start", "new_backend"]
