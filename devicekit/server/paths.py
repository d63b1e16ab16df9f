"""Which directories weights may be read from."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from devicekit.contract.text import shown
from devicekit.server.errors import BadRequest


class AllowedRoots:
    """Checks paths that come from outside.

    Args:
        roots: directories; what lies in them, links followed, may be read. Of a snapshot in a cache of a model
            hub, whose files are links, what they lead to as well.
    """

    def __init__(self, roots: Sequence[Path]) -> None:
        self.roots = tuple(root.resolve() for root in roots)
        beside = [root.parents[1] / "blobs" for root in self.roots if root.parent.name == "snapshots"]
        self.within = (*map(str, self.roots), *(str(one) for one in beside if one.is_dir()))
        """Where files have to lie that are read for somebody, once all links are followed."""

    def confine(self, path: str) -> Path:
        """The real path of a directory, which must exist. Its files may be links: `within` says whereto.

        Raises:
            BadRequest: it does not exist, or lies outside every root.
        """
        try:
            found = Path(path).resolve(strict=False)
            there = found.is_dir()
        except OSError as error:  # too long, or a loop of links
            raise BadRequest(
                f"{shown(path)} is no usable path: {error.strerror or shown(str(error))}."
            ) from error
        except (ValueError, RuntimeError) as error:  # a NUL in it, or a loop of links in an older Python
            raise BadRequest(f"{shown(path)} is no usable path: {shown(str(error))}.") from error
        if not any(found.is_relative_to(root) for root in self.roots):
            allowed = ", ".join(map(str, self.roots))
            raise BadRequest(
                f"{shown(path)} is not in a directory that weights may come from ({allowed}); the server's "
                "operator can allow more with --allowed-weights-root."
            )
        if not there:
            raise BadRequest(f"There is no model directory {shown(path)}.")
        return found
