"""An opened backend: one plugin behind a plugin manager of its own, and the callables that reach its hooks."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping

import pluggy
from packaging.version import Version

from devicekit.contract.capabilities import CAPABILITIES
from devicekit.contract.errors import BackendLoadError, InvalidHooks
from devicekit.contract.hooks import HOOKS, BackendSpec, hookimpl
from devicekit.contract.manifest import Manifest
from devicekit.contract.spec import PROJECT
from devicekit.contract.text import shown
from devicekit.registry.candidates import Candidate
from devicekit.registry.locking import registry_lock
from devicekit.registry.validation import implemented_hooks, newer_than_host, parameter_names
from devicekit.registry.witness import Witness


class OpenedBackend:
    """One backend and its observers. A call made here can reach no other backend.

    Observers are pluggy plugins whose hooks are wrappers (``@hookimpl(wrapper=True)``); while one wraps a hook,
    that hook goes through pluggy, and the others keep their compiled, direct path. An observer may raise, but it
    cannot answer in the backend's place.
    """

    def __init__(self, candidate: Candidate, manifest: Manifest, contract: Version, plugin: object) -> None:
        self.candidate = candidate
        self.manifest = manifest
        self.contract = contract  # the newest version both sides speak
        self.plugin = plugin
        self.implemented = implemented_hooks(plugin)
        # What the plugin names and this devicekit does not know: of a newer contract, and not used here.
        self.newer = (*manifest.newer, *newer_than_host(plugin, manifest))
        self.device_count: int | None = None  # see `fix_device_count`
        self.hung: BackendLoadError | None = None  # set once a probe did not return
        self._functions = {hook: getattr(plugin, hook) for hook in self.implemented}
        self._parameters = {
            hook: parameter_names(self._functions[hook], HOOKS[hook]) for hook in self.implemented
        }
        self._manager = _HooksOnly(PROJECT)
        self._manager.add_hookspecs(BackendSpec)
        self._answering = _Answering(self._functions, self._parameters)
        self._manager.register(self._answering, name=candidate.name)
        self._witness = Witness(self.label)
        self._observed: frozenset[str] = frozenset()
        self._listeners: list[weakref.WeakMethod[Callable[[], None]]] = []

    @property
    def name(self) -> str:
        return self.candidate.name

    @property
    def label(self) -> str:
        """Name, distribution and version, as error messages give them."""
        return self.candidate.label

    @property
    def capabilities(self) -> frozenset[str]:
        """What the manifest claims, outright or as optional, and whose hooks are present."""
        claimed = self.manifest.capabilities | self.manifest.optional
        return frozenset(name for name in claimed if self.implemented.issuperset(CAPABILITIES[name].hooks))

    @property
    def withdrawn(self) -> Mapping[str, tuple[str, ...]]:
        """Capabilities claimed outright whose hooks this version of the vendor's software cannot serve: which."""
        return {
            name: tuple(hook for hook in CAPABILITIES[name].hooks if hook not in self.implemented)
            for name in sorted(self.manifest.capabilities - self.capabilities)
        }

    def fix_device_count(self, count: int) -> None:
        """Keep the visible devices as they are: one is about to be opened, and the probe asks no more."""
        self.device_count = count

    def function(self, hook: str) -> Callable[..., object] | None:
        """The callable behind ``hook``, taking `parameters` by position; ``None`` if the backend lacks it."""
        if hook not in self._observed:
            return self._functions.get(hook)
        return self._witness.guard(getattr(self._manager.hook, hook), HOOKS[hook].parameters)

    def parameters(self, hook: str) -> tuple[str, ...]:
        """What `function` takes: fewer than the contract's where the plugin predates an appended argument."""
        return HOOKS[hook].parameters if hook in self._observed else self._parameters[hook]

    def takes(self, hook: str) -> tuple[str, ...]:
        """The parameters that the backend itself has for ``hook``, whoever observes it."""
        return self._parameters[hook]

    def add_observer(self, observer: object) -> None:
        """Let ``observer`` wrap hooks of this backend.

        Raises:
            InvalidHooks: it implements a hook instead of wrapping it, which would let it answer for the backend.
        """
        with registry_lock:
            self._manager.register(observer)
            replaced = [
                caller.name
                for caller in self._manager.get_hookcallers(observer) or ()
                for one in caller.get_hookimpls()
                if one.plugin is observer and not one.wrapper
            ]
            if replaced:
                self._manager.unregister(observer)
                raise InvalidHooks(
                    f"An observer must wrap hooks with @hookimpl(wrapper=True); {shown(observer)} implements "
                    f"{', '.join(replaced)}.",
                    backend=self.name,
                    problems=tuple(replaced),
                )
            self._recompile()

    def remove_observer(self, observer: object) -> None:
        """Undo `add_observer`."""
        with registry_lock:
            self._manager.unregister(observer)
            self._recompile()

    def on_recompile(self, listener: Callable[[], None]) -> None:
        """Call the bound method ``listener`` now, and whenever the callables that `function` returns change.

        Its object is not kept alive.
        """
        with registry_lock:
            self._listeners.append(weakref.WeakMethod(listener))
            listener()

    def _recompile(self) -> None:
        # The witness has to stand nearest to the backend, and the last to come with trylast does.
        if self._manager.is_registered(self._witness):
            self._manager.unregister(self._witness)
        self._observed = frozenset(
            caller.name
            for observer in self._manager.get_plugins() - {self._answering}
            for caller in self._manager.get_hookcallers(observer) or ()
            if caller.name in self.implemented
        )
        if self._observed:
            self._manager.register(self._witness)
        self._listeners = [listener for listener in self._listeners if listener() is not None]
        for reference in self._listeners:
            if (listener := reference()) is not None:
                listener()


class _Answering:
    """A plugin's hooks as pluggy is to see them: none has a default, because pluggy leaves such arguments out."""

    def __init__(
        self, functions: Mapping[str, Callable[..., object]], parameters: Mapping[str, tuple[str, ...]]
    ) -> None:
        for hook, function in functions.items():
            listed = ", ".join(parameters[hook])
            plain: Callable[..., object] = eval(
                f"lambda {listed}: function({listed})", {"function": function}
            )
            setattr(self, hook, hookimpl(plain))


class _HooksOnly(pluggy.PluginManager):
    """Reads hooks only: another attribute, such as a vendor's property, may raise or initialise the device."""

    def parse_hookimpl_opts(self, plugin: object, name: str) -> pluggy.HookimplOpts | None:
        return super().parse_hookimpl_opts(plugin, name) if name in HOOKS else None
