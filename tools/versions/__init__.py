"""Runs the suite on every combination of versions that is claimed, each in an environment of its own.

``make versions``. What is claimed stands in pyproject.toml; the columns in `columns` are the combinations that
hold it to its word.
"""

from tools.versions.columns import COLUMNS, SHORT, Column
from tools.versions.page import page
from tools.versions.record import Counts, Run, read, write
from tools.versions.running import run

__all__ = ["COLUMNS", "SHORT", "Column", "Counts", "Run", "page", "read", "run", "write"]
