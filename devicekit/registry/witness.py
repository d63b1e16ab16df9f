"""Records what a backend answered to an observed call, so that no observer can replace the answer."""

from __future__ import annotations

import threading
from collections.abc import Callable, Generator

from devicekit.contract.errors import InvalidHooks
from devicekit.contract.hooks import HOOKS, hookimpl


class _Calls(threading.local):
    """This thread's observed calls, the innermost last; each holds the backend's answer once there is one."""

    def __init__(self) -> None:
        self.open: list[list[object]] = []


class Witness:
    """The innermost wrapper of every hook."""

    def __init__(self, label: str) -> None:
        self._label = label
        self._calls = _Calls()
        for name in HOOKS:
            setattr(self, name, self._watch)

    @hookimpl(wrapper=True, trylast=True)
    def _watch(self) -> Generator[None, object, object]:
        # Without a result nothing is noted, so an observer that swallows the exception is found out as well.
        result = yield
        self._calls.open[-1].append(result)
        return result

    def guard(self, call: Callable[..., object], names: tuple[str, ...]) -> Callable[..., object]:
        """``call`` with positional arguments, which raises unless the result is the backend's own answer."""

        def observed(*arguments: object) -> object:
            answers: list[object] = []
            self._calls.open.append(answers)
            try:
                result = call(**dict(zip(names, arguments, strict=True)))
            finally:
                self._calls.open.pop()
            if not answers or answers[0] is not result:
                raise InvalidHooks(
                    f"An observer of backend {self._label} answered for it: it may watch a hook or raise, and "
                    "must return what the backend returned."
                )
            return result

        return observed
