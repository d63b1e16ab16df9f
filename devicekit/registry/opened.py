"""An opened backend: one plugin behind a plugin manager of its own, and its hooks compiled to plain callables."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pluggy

from devicekit.contract.errors import InvalidHooks
from devicekit.contract.hooks import HOOKS, PROJECT, BackendSpec
from devicekit.contract.manifest import Manifest
from devicekit.registry.loading import LoadedBackend
from devicekit.registry.validation import implemented_hooks


class OpenedBackend:
    """One backend and its observers. A call made here can reach no other backend.

    Observers are pluggy plugins whose hooks are wrappers (``@hookimpl(wrapper=True)``); while one wraps a hook,
    that hook goes through pluggy, and the others keep their compiled, direct path.
    """

    def __init__(self, loaded: LoadedBackend) -> None:
        self.loaded = loaded
        self.implemented = implemented_hooks(loaded.plugin)
        self._manager = pluggy.PluginManager(PROJECT)
        self._manager.add_hookspecs(BackendSpec)
        self._manager.register(loaded.plugin, name=loaded.candidate.name)
        self._listeners: list[Callable[[], None]] = []
        self._lock = threading.Lock()

    @property
    def name(self) -> str:
        return self.loaded.candidate.name

    @property
    def label(self) -> str:
        """Name, distribution and version, as error messages give them."""
        return self.loaded.candidate.label

    @property
    def manifest(self) -> Manifest:
        return self.loaded.manifest

    def function(self, hook: str) -> Callable[..., object] | None:
        """The callable behind ``hook``, taking positional arguments; ``None`` if the backend lacks it."""
        if hook not in self.implemented:
            return None
        caller: pluggy.HookCaller = getattr(self._manager.hook, hook)
        implementations = caller.get_hookimpls()
        if all(not (one.hookwrapper or one.wrapper) for one in implementations):
            return implementations[-1].function
        names = HOOKS[hook].parameters
        return lambda *arguments: caller(**dict(zip(names, arguments, strict=True)))

    def add_observer(self, observer: object) -> None:
        """Let ``observer`` wrap hooks of this backend.

        Raises:
            InvalidHooks: it implements a hook instead of wrapping it, which would let it answer for the backend.
        """
        with self._lock:
            self._manager.register(observer)
            replaced = [
                caller.name
                for caller in self._manager.get_hookcallers(observer) or ()
                for one in caller.get_hookimpls()
                if one.plugin is observer and not (one.hookwrapper or one.wrapper)
            ]
            if replaced:
                self._manager.unregister(observer)
                raise InvalidHooks(
                    f"An observer must wrap hooks with @hookimpl(wrapper=True); {observer!r} implements "
                    f"{', '.join(replaced)}.",
                    backend=self.name,
                    problems=tuple(replaced),
                )
        self._recompile()

    def remove_observer(self, observer: object) -> None:
        """Undo `add_observer`."""
        with self._lock:
            self._manager.unregister(observer)
        self._recompile()

    def on_recompile(self, listener: Callable[[], None]) -> None:
        """Call ``listener`` whenever the callables that `function` returns have changed."""
        self._listeners.append(listener)

    def _recompile(self) -> None:
        for listener in self._listeners:
            listener()


_open_lock = threading.Lock()
_opened: dict[int, OpenedBackend] = {}


def open_backend(loaded: LoadedBackend) -> OpenedBackend:
    """The one `OpenedBackend` of a loaded plugin in this process."""
    with _open_lock:
        key = id(loaded.plugin)
        if key not in _opened:
            _opened[key] = OpenedBackend(loaded)
        return _opened[key]
