"""The strategy of each component of a pipeline, made anew when the component's module is replaced."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Protocol

from torch import nn

from devicekit.residency.errors import UndeclaredComponent, UnknownComponent
from devicekit.residency.modes import Resident, Strategy
from devicekit.residency.transfer import Transfer


class Mode(Protocol):
    """Where a component lives between uses; see `devicekit.residency.modes`."""

    def attach(self, module: nn.Module, transfer: Transfer) -> Strategy:
        """The strategy for one module."""
        ...


class Components:
    """Components by name, each with its strategy.

    Args:
        modes: by component name; ``"all"`` means those without one of their own. Default: `Resident`.

    Raises:
        UnknownComponent: a mode is for a component that is not there.
    """

    def __init__(
        self, modules: Mapping[str, nn.Module], modes: Mapping[str, Mode], transfer: Transfer
    ) -> None:
        self.modules = modules
        self._modes = dict(modes)
        self._default: Mode = self._modes.pop("all", Resident())
        self._transfer = transfer
        self._strategies: dict[str, Strategy] = {}
        self.check(self._modes, "A mode is set for")

    def __getitem__(self, name: str) -> Strategy:
        module = self.modules[name]
        strategy = self._strategies.get(name)
        if strategy is None or strategy.module is not module:
            self.forget(name)
            strategy = self._modes.get(name, self._default).attach(module, self._transfer)
            self._strategies[name] = strategy
        return strategy

    def attached(self) -> Iterator[tuple[str, Strategy]]:
        """Components that have a strategy already."""
        return iter(list(self._strategies.items()))

    def forget(self, name: str) -> None:
        """Drop every reference to a component's module, which is parked."""
        strategy = self._strategies.pop(name, None)
        if strategy is not None:
            strategy.detach()
            self._transfer.settle()

    def check(self, names: Iterable[str], what: str) -> None:
        """Raise `UnknownComponent` for names that are not there."""
        if unknown := sorted(set(names) - set(self.modules)):
            known = ", ".join(sorted(self.modules))
            raise UnknownComponent(
                f"{what} {', '.join(unknown)}, which this pipeline does not have; it has {known}."
            )

    def check_declared(self, names: set[str]) -> None:
        """Raise `UndeclaredComponent` if a mode moves a component that is not among ``names``."""
        moved = {name for name, mode in self._modes.items() if not isinstance(mode, Resident)}
        if missing := sorted(moved - names):
            raise UndeclaredComponent(
                f"{', '.join(missing)} would be moved off the device and never back: no stage declares a use."
            )
