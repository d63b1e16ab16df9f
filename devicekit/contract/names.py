"""Tells a misspelt name of the contract from one that a newer contract may have.

Two edits make a misspelling, three make another name. The contract keeps to that itself: a hook, capability or
manifest key that is added stands at least three edits away from every older one.
"""

from __future__ import annotations

from collections.abc import Iterable

MISSPELT_WITHIN = 2  # insertions, deletions, replacements and swaps of neighbours


def misspelling_of(name: str, known: Iterable[str]) -> str | None:
    """The known name that ``name`` was probably meant to be; ``None`` if it is near none of them."""
    near = ((edits(name, one, MISSPELT_WITHIN), one) for one in known)
    return min(((count, one) for count, one in near if count is not None), default=(0, None))[1]


def resembling(name: str, known: Iterable[str]) -> str | None:
    """The known name most like ``name``, for a hint; ``None`` if none is much like it."""
    import difflib  # only a plugin with a mistake needs it

    return next(iter(difflib.get_close_matches(name[:100], list(known), n=1)), None)


def edits(one: str, other: str, most: int) -> int | None:
    """How many edits turn ``one`` into ``other``; ``None``: more than ``most``."""
    if abs(len(one) - len(other)) > most:
        return None
    before: list[int] = []
    row = list(range(len(other) + 1))
    for line, letter in enumerate(one, 1):
        previous, row = row, [line]
        for column, wanted in enumerate(other, 1):
            cost = min(previous[column] + 1, row[-1] + 1, previous[column - 1] + (letter != wanted))
            if line > 1 and column > 1 and letter == other[column - 2] and one[line - 2] == wanted:
                cost = min(cost, before[column - 2] + 1)
            row.append(cost)
        if min(row) > most:
            return None
        before = previous
    return row[-1] if row[-1] <= most else None
