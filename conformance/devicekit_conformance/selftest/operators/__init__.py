"""What a fault of a backend can be, as operators: each is applied to every hook that it can apply to.

An operator is a generator of `Fault`: for each place it names the hook, the sentence of the contract that is
broken, and how to make the faulty backend. Where a change could not be told from honest behaviour it makes none.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

from devicekit.contract.hooks import HOOKS
from devicekit_conformance.selftest.honest import Honest

__all__ = ["OPERATORS", "Fault", "Operator", "operator", "sentence"]


@dataclass(frozen=True)
class Fault:
    """One operator at one place."""

    hook: str  # "" for the whole backend
    variant: str
    breaks: str  # the contract's sentence
    make: Callable[[], type[Honest]] = field(compare=False)


Places = Callable[[], Iterator[Fault]]


@dataclass(frozen=True)
class Operator:
    """A way to be wrong."""

    name: str
    family: str
    says: str  # what such a backend does
    places: Places


OPERATORS: dict[str, Operator] = {}


def operator(family: str) -> Callable[[Places], Places]:
    """Enter a generator of faults; its name and docstring are the operator's."""

    def enter(places: Places) -> Places:
        name = places.__name__
        OPERATORS[name] = Operator(name, family, (places.__doc__ or "").strip(), places)
        return places

    return enter


def sentence(hook: str) -> str:
    """What the contract says first of a hook."""
    return " ".join(HOOKS[hook].doc.partition("\n\n")[0].split())
