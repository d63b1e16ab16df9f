"""Captured graphs, as ``torch.accelerator.Graph``."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack

import devicekit
from devicekit.contract.errors import UnsupportedHook


class Graph:
    """Work that is captured inside its ``with`` block and replayed.

    Raises:
        UnsupportedHook: the backend has no graphs, or a pool is given.
    """

    def __init__(self, pool: object = None) -> None:
        device = devicekit.current_device()
        if pool is not None:
            raise UnsupportedHook(
                "A graph's pool is given to Device.create_graph.", backend=device.name, hook="create_graph"
            )
        self._graph = device.create_graph()
        self._left = ExitStack()

    def capture(self) -> AbstractContextManager[None]:
        """A context whose work is recorded instead of run."""
        return self._graph.capture()

    def __enter__(self) -> Graph:
        self._left.enter_context(self._graph.capture())
        return self

    def __exit__(self, *error: object) -> None:
        self._left.__exit__(*error)  # type: ignore[arg-type]  # as the with statement gives them

    def replay(self) -> None:
        """Run the captured work."""
        self._graph.replay()

    def reset(self) -> None:
        """Drop the captured work."""
        self._graph.reset()
