"""Starts a backend of one's own: a package that installs, is accepted and runs on its first day."""

from __future__ import annotations

from devicekit.devtools.scaffold.package import new_backend

__all__ = ["new_backend"]
