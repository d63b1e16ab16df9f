"""Layer-wise offload, for a component larger than the device: one layer at a time, with the next on its way."""

from __future__ import annotations

import enum
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle

from devicekit.contract.records import ErrorKind
from devicekit.field_types import require_types
from devicekit.oom import forget_tensors
from devicekit.ranges import whole
from devicekit.residency.errors import NoLayers
from devicekit.residency.modes import Strategy
from devicekit.residency.tensors import ModuleTensors, own_tensors
from devicekit.residency.transfer import Transfer, Upload


class Placement(str, enum.Enum):
    """Which layers stay on the device for the whole use."""

    LEADING = "leading"  # the first ones
    STRIDED = "strided"  # spread evenly: the copies in between have more time


@dataclass(frozen=True, slots=True)
class LayerwiseOffload:
    """Each layer is copied to the device for its turn, and dropped after it. For frozen weights.

    Args:
        prefetch: how many layers are under way while one computes, on a backend with streams.
        resident_layers: how many stay for the whole use.
        permanent: those stay between uses, too.
        layers: finds the layers of a component, in order of use; default: its largest ``nn.ModuleList``.
    """

    prefetch: int = 1
    resident_layers: int = 0
    placement: Placement = Placement.LEADING
    permanent: bool = False
    layers: Callable[[nn.Module], Sequence[nn.Module]] | None = None

    def __post_init__(self) -> None:
        whole("prefetch", self.prefetch)
        whole("resident_layers", self.resident_layers)
        require_types(self)

    def attach(self, module: nn.Module, transfer: Transfer) -> Strategy:
        """The strategy for one module.

        Raises:
            NoLayers: the module has no list of layers.
        """
        return _LayerwiseOffload(module, transfer, self)


class _Part:
    """Some tensors of the component, and their copy on the host."""

    def __init__(self, tensors: ModuleTensors, transfer: Transfer) -> None:
        self.tensors = tensors
        self.transfer = transfer
        self.image = transfer.pinned(tensors.current)
        self.resident = False
        self._upload: Upload | None = None
        self._here = False
        tensors.install(self.image)

    def fetch(self, dtype: torch.dtype | None) -> None:
        if self._upload is None and not self._here:
            self._upload = self.transfer.upload(self.image, dtype)

    def enter(self, dtype: torch.dtype | None) -> None:
        self.fetch(dtype)
        if self._upload is not None:
            self.tensors.install(self._upload.wait())
            self._upload, self._here = None, True

    def leave(self) -> Upload | None:
        """Free the device's tensors. Wait for what is returned: its copies may still be under way."""
        upload, self._upload, self._here = self._upload, None, False
        self.tensors.install(self.image)
        return upload


class _LayerwiseOffload(Strategy):
    layerwise = True

    def __init__(self, module: nn.Module, transfer: Transfer, mode: LayerwiseOffload) -> None:
        super().__init__(module, transfer)
        self._mode = mode
        layers = _largest_list(module) if mode.layers is None else list(mode.layers(module))
        if not layers:
            raise NoLayers(f"{type(module).__name__} has no nn.ModuleList: say what its layers are.")
        shared = _shared(module, layers)
        held = [ModuleTensors([layer], without=shared) for layer in layers]
        rest = ModuleTensors([module], without=set().union(*(tensors.ids for tensors in held)))
        self._layers = [_Part(tensors, transfer) for tensors in held]
        self._rest = _Part(rest, transfer)
        for index in _chosen(len(layers), mode):
            self._layers[index].resident = True
        # Without streams a copy beforehand takes as long as one in time, and memory for longer.
        self._depth = mode.prefetch if transfer.asynchronous else 0
        self._dtype: torch.dtype | None = None
        self._active = False
        #: Layers that came late, since the device ran out of memory when they were to come early.
        self.prefetches_failed = 0
        self._hooks: list[RemovableHandle] = []
        for index, layer in enumerate(layers):
            before, after = _hooks(weakref.ref(self), index)
            self._hooks.append(layer.register_forward_pre_hook(before))
            self._hooks.append(layer.register_forward_hook(after, always_call=True))

    @property
    def bytes(self) -> int:
        """The most bytes that are on the device at once."""
        staying = [part.tensors.bytes for part in self._layers if part.resident]
        passing = sorted((part.tensors.bytes for part in self._layers if not part.resident), reverse=True)
        return self._rest.tensors.bytes + sum(staying) + sum(passing[: 1 + self._depth])

    def prefetch(self, dtype: torch.dtype | None) -> None:
        if self._active or self.prefetched:
            return
        self._dtype = dtype
        self.prefetched = True
        try:
            self._rest.fetch(dtype)
        except BaseException:
            self.park()
            raise
        self._fetch_first()

    def ready(self, dtype: torch.dtype | None) -> None:
        if self.prefetched and dtype != self._dtype:
            self.park()
        self._dtype, self.prefetched = dtype, False
        try:
            for part in (self._rest, *(part for part in self._layers if part.resident)):
                part.enter(dtype)
            self._fetch_first()
        except BaseException:
            self.park()
            raise
        self._active = True

    def park(self) -> None:
        self._leave([part for part in self._layers if not (part.resident and self._mode.permanent)])

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._leave(self._layers)

    def _leave(self, layers: Sequence[_Part]) -> None:
        self._active = self.prefetched = False
        # The host's tensors first: that succeeds even when the device is lost.
        uploads = [part.leave() for part in (self._rest, *layers)]
        for upload in uploads:
            if upload is not None:
                upload.wait()

    def _fetch_first(self) -> None:
        for part in [part for part in self._layers if not part.resident][: self._depth]:
            self._fetch_ahead(part)

    def _fetch_ahead(self, part: _Part) -> None:
        try:
            part.fetch(self._dtype)
        except Exception as error:
            if self.transfer.device.classify_error(error) is not ErrorKind.OUT_OF_MEMORY:
                raise
            forget_tensors(error)  # it is brought when its turn comes, and what fails then is raised
            self.prefetches_failed += 1

    def enter_layer(self, index: int) -> None:
        """Bring a layer to the device, and begin to bring the next ones."""
        if not self._active:
            return
        self._layers[index].enter(self._dtype)
        # Submitted before this layer's own work, so that the copies run beside it. After the last layer comes
        # the first: the next step of a denoising loop.
        for ahead in range(1, self._depth + 1):
            self._fetch_ahead(self._layers[(index + ahead) % len(self._layers)])

    def leave_layer(self, index: int) -> None:
        """Free a layer's device memory."""
        if self._active and not self._layers[index].resident:
            self._layers[index].leave()


def _hooks(
    strategy: weakref.ref[_LayerwiseOffload], index: int
) -> tuple[Callable[[nn.Module, object], None], Callable[[nn.Module, object, object], None]]:
    """Functions that a layer calls before and after its work.

    They hold the strategy weakly: module and strategy would otherwise keep each other, and device memory, until a
    garbage collection.
    """

    def before(module: nn.Module, inputs: object) -> None:
        if (found := strategy()) is not None:
            found.enter_layer(index)

    def after(module: nn.Module, inputs: object, output: object) -> None:
        if (found := strategy()) is not None:
            found.leave_layer(index)

    return before, after


def _largest_list(module: nn.Module) -> list[nn.Module]:
    lists = [list(child) for child in module.modules() if isinstance(child, nn.ModuleList) and len(child)]
    return max(lists, key=lambda layers: ModuleTensors(layers).bytes, default=[])


def _shared(module: nn.Module, layers: Sequence[nn.Module]) -> set[int]:
    """Identities of tensors that are in more than one layer, or in a layer and outside: they go with the rest."""
    inside = {id(part) for layer in layers for part in layer.modules()}
    seen = {
        id(tensor)
        for part in module.modules()
        if id(part) not in inside
        for _, tensor, _ in own_tensors(part)
    }
    shared: set[int] = set()
    for layer in layers:
        ids = ModuleTensors([layer]).ids
        shared |= seen & ids
        seen |= ids
    return shared


def _chosen(count: int, mode: LayerwiseOffload) -> set[int]:
    staying = min(mode.resident_layers, count)
    if mode.placement is Placement.LEADING:
        return set(range(staying))
    return {index * count // staying for index in range(staying)}
