"""What a check is given: the backend, a road to its device that is not the backend's own, and words for faults."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from typing import TYPE_CHECKING, NoReturn, cast

from devicekit_conformance import frozen_contract
from devicekit_conformance.target import Target, load_object

if TYPE_CHECKING:
    from devicekit.contract.manifest import Manifest
    from devicekit.device import Device
    from devicekit.registry import Candidate, OpenedBackend
    from devicekit_conformance.probe import Probe

MIB = 1 << 20
MARK = "devicekit_impl"  # the attribute by which a method is known for a hook


class Failure(Exception):
    """The backend breaks the requirement."""


class NotApplicable(Exception):
    """The requirement says nothing about this backend."""


class NotRun(Exception):
    """The requirement applies and cannot be decided here."""


class Context:
    """One backend in one worker process. Everything is opened when it is first asked for."""

    def __init__(
        self,
        target: Target,
        note: Callable[[str], None] = lambda text: None,
        focus: frozenset[str] | None = None,
    ) -> None:
        self.target = target
        self.focus = focus  # where set, requirements that try every hook try these only
        self.note = note  # tells the judge what is being tried, for the message if this process hangs

    # -- The backend ------------------------------------------------------------------------------------------

    @functools.cached_property
    def candidate(self) -> Candidate:
        """What the registry found. For a backend that is not installed, its module is imported here."""
        return self.target.candidate()

    @property
    def manifest(self) -> Manifest:
        if self.candidate.error is not None:
            raise Failure(str(self.candidate.error))
        return cast("Manifest", self.candidate.manifest)

    @functools.cached_property
    def opened(self) -> OpenedBackend:
        from devicekit.registry import load

        return load(self.candidate)

    @property
    def plugin(self) -> object:
        """The backend's own object."""
        return self.opened.plugin

    @property
    def implemented(self) -> frozenset[str]:
        return self.opened.implemented

    @functools.cached_property
    def taken_back(self) -> frozenset[str]:
        """Hooks that the backend's class has, and its object sets to ``None``: this software lacks them."""
        kind = type(self.plugin)
        offered = (name for name in dir(kind) if hasattr(getattr(kind, name, None), MARK))
        return frozenset(
            name for name in offered if inspect.getattr_static(self.plugin, name, self.plugin) is None
        )

    @functools.cached_property
    def device_count(self) -> int:
        """Devices that the backend reports; 0 when it says it is not available."""
        available, count = self.opened.function("is_available"), self.opened.function("device_count")
        if available is None or count is None or available() is not True:
            return 0
        found = count()
        return found if type(found) is int else 0

    @functools.cached_property
    def first_use(self) -> frozenset[str]:
        """What initialising the device changes in a process; asked for before anything has."""
        from devicekit_conformance.first_use import changed_by_first_use

        return changed_by_first_use(self)

    def device(self, index: int = 0) -> Device:
        """The engine's handle, for what is to be seen through the host."""
        from devicekit.device import device_of

        return device_of(self.opened, index)

    def claims(self, capability: str) -> bool:
        """Whether the manifest does, outright or on condition that the hooks are there.

        A claim falls with a hook that the backend's object takes back.
        """
        hooks = frozen_contract.capability(capability) or ()
        if capability in self.manifest.capabilities:
            return self.taken_back.isdisjoint(hooks)
        return capability in self.manifest.optional and all(self.has(hook) for hook in hooks)

    @property
    def holds_tensors(self) -> bool:
        """Whether what is allocated lies in the device's memory. Plain torch's tensors of type cpu are the host's.

        A device for which torch has no type has its own memory; only a probe of the vendor's reaches that.
        """
        foreign = self.manifest.device_type == "cpu" and not self.manifest.host
        return self.target.probe is not None or not foreign or self.claims("unified_memory")

    def needs_its_memory(self) -> None:
        """Raise `NotRun` where nothing can be allocated in the device's own memory."""
        if not self.holds_tensors:
            raise NotRun(
                "torch has no tensors in this device's memory: it needs a probe that takes some of it"
            )

    def has(self, hook: str) -> bool:
        return hook in self.implemented

    def hook(self, name: str) -> Callable[..., object]:
        """The backend's own function, called as the host calls it.

        A hook that raises is a failure, and one that returns nothing where something is to be used.
        """
        function = self.opened.function(name)
        if function is None:
            raise NotApplicable(f"the backend does not implement {name}")

        parameters = self.opened.parameters(name)

        def call(*arguments: object) -> object:
            try:
                appended = frozen_contract.asking_nothing(name, len(arguments), parameters)
                found = function(*arguments, *appended)
            except Exception as error:
                shown = ", ".join(map(repr, arguments))
                raise Failure(f"{name}({shown}) raised {type(error).__name__}: {error}") from error
            _check_something(name, found)
            return found

        return call

    def raw_hook(self, name: str) -> Callable[..., object]:
        """The backend's own function, whose exceptions are what is being looked at."""
        function = self.opened.function(name)
        if function is None:
            raise NotApplicable(f"the backend does not implement {name}")
        return function

    def result(self, name: str, *arguments: object) -> object:
        """Call a hook and check the exact type of what it returns."""
        found = self.hook(name)(*arguments)
        self.check_type(name, found)
        return found

    def check_type(self, name: str, found: object) -> None:
        """Fail unless ``found`` is of a type that the contract allows the hook to return."""
        allowed = frozen_contract.hook(name).returns
        if "?" in allowed:
            return
        _check_something(name, found)
        if "*" not in allowed and type(found).__name__ not in allowed:
            expected = " or ".join("None" if one == "NoneType" else one for one in allowed)
            fail(f"{name} returned {found!r} ({type(found).__name__}), not {expected}")

    # -- The road around it -----------------------------------------------------------------------------------

    @functools.cached_property
    def probe(self) -> Probe:
        from devicekit_conformance.probe import TorchProbe

        if self.target.probe is not None:
            made, _ = load_object(self.target.probe)
            return cast("Probe", made())
        self.opened  # noqa: B018  # a vendor's torch module appears when its plugin is imported
        return TorchProbe(self.manifest.device_type, self.manifest.indexed)


def _check_something(name: str, found: object) -> None:
    if found is None and "*" in frozen_contract.hook(name).returns:
        fail(f"{name} returned None: a hook that the device cannot serve is left out instead")


def expect(condition: bool, message: str) -> None:
    """Fail with ``message`` unless ``condition`` holds."""
    if not condition:
        fail(message)


def fail(message: str) -> NoReturn:
    """Fail the requirement."""
    raise Failure(message)
