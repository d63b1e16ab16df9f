"""A front door in a process of its own, with workers from a fork server that the tests already have.

Each command starts a fork server, which imports torch for seconds. What the command says and how it ends does not
hang on whose fork server it is.
"""

from __future__ import annotations

import os
import runpy
import socket
import sys

from devicekit_conformance import judge
from devicekit_conformance.fork_server import Nursery

PROGRAM = __file__


class Lender(Nursery):
    """A fork server that one other process at a time may ask, over a descriptor that it inherits."""

    def __enter__(self) -> Lender:
        return self

    @property
    def descriptor(self) -> int:
        assert self._control is not None
        return self._control.fileno()


def main(descriptor: int, module: str, *arguments: str) -> None:
    """Run a module as ``python -m`` does, once its fork server is the lender's."""

    class Borrowed(Nursery):
        """The lender's; should that be dead, one of this process's own."""

        _lent = False

        @property
        def alive(self) -> bool:
            return self._lent or super().alive

        def _start(self, why: str = "") -> None:
            self._lent = self._starts == 0
            if not self._lent:
                super()._start(why)
                return
            self._starts = 1
            self._control = socket.socket(fileno=descriptor)
            self._control.settimeout(180)

    judge.Nursery = Borrowed  # type: ignore[misc]  # from where the front doors take it
    sys.path[0] = os.getcwd()
    sys.argv = [module, *arguments]
    runpy.run_module(module, run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), *sys.argv[2:])
