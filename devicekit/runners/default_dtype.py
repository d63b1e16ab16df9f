"""torch's default dtype, of which a process has one: while transformers builds a model, it is the model's dtype.

A pass that runs in another thread meanwhile would compute in the wrong type, so a pass and the building of a model
exclude each other. Building reads no weights and takes a fraction of a second, whatever the size.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager

from devicekit.runners import huggingface as hf

in_use: AbstractContextManager[bool] = threading.RLock()
"""Held by whoever needs the default dtype to stay, or changes it."""


def built_alone(kind: type[hf.PreTrainedModel]) -> type[hf.PreTrainedModel]:
    """A class of the same name whose models are built while no pass runs."""

    def get_init_context(cls: type, /, *args: object, **kwargs: object) -> list[object]:
        """What is entered around the constructor."""
        return [_alone(kind.get_init_context.__func__(cls, *args, **kwargs))]

    return type(
        kind.__name__,
        (kind,),
        {"get_init_context": classmethod(get_init_context), "__module__": kind.__module__},
    )


@contextmanager
def _alone(contexts: Sequence[AbstractContextManager[object]]) -> Iterator[None]:
    # One for all: of several, transformers leaves those open that it entered before one that raised.
    with in_use, ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
