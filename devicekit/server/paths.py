"""Which directories weights may be read from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from devicekit.server.errors import BadRequest


class AllowedRoots:
    """Confines paths that come from outside.

    Args:
        roots: directories; what lies in them, links followed, may be read.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(root.resolve() for root in roots)

    def confine(self, path: str) -> Path:
        """The real path of ``path``, which must exist.

        Raises:
            BadRequest: it does not exist, or lies outside every root.
        """
        try:
            found = Path(path).resolve(strict=False)
            there = found.is_dir()
        except (OSError, ValueError, RuntimeError) as error:  # too long, a NUL in it, a loop of links
            raise BadRequest(f"Not a usable path: {error}") from error
        if not any(found == root or root in found.parents for root in self.roots):
            allowed = ", ".join(map(str, self.roots))
            raise BadRequest(
                f"{path!r} is not in a directory that weights may come from ({allowed}); the server's operator "
                "can allow more with --allowed-weights-root."
            )
        if not there:
            raise BadRequest(f"There is no model directory {path}.")
        return found
