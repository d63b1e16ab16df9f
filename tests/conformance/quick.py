"""What `make test` judges of a backend where `make thorough` judges all."""

from __future__ import annotations

from collections.abc import Collection

from devicekit_conformance.rulebook import rulebook


def quick(profiles: Collection[str]) -> list[str]:
    """The requirements of ``profiles`` without what takes a process of its own or goes through every hook.

    Those take nearly all of the time.
    """
    return sorted(
        id
        for id, rule in rulebook().items()
        if rule.profile in profiles and rule.isolated is None and "-EACH-" not in id
    )
