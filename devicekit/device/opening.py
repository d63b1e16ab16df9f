"""Opens devices: from what a user names, or from the default of this scope, to the one Device there is for it."""

from __future__ import annotations

import copyreg
import os
import sys
from collections.abc import Callable
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from types import ModuleType
from typing import TYPE_CHECKING

import torch

from devicekit.contract.errors import BackendUnavailable, InvalidDevice
from devicekit.device.dispatch import raise_as_hook_error
from devicekit.device.handle import Device
from devicekit.registry.candidates import registered, registrations
from devicekit.registry.locking import registry_lock
from devicekit.registry.opened import OpenedBackend
from devicekit.registry.probing import probe
from devicekit.registry.request import parse_request, requested_by_environment
from devicekit.registry.selection import select, select_type

if TYPE_CHECKING:
    from collections.abc import Iterator

_default: ContextVar[Device | None] = ContextVar("devicekit_default_device", default=None)

# Choices made so far, by request and by everything that a choice depends on and that can change cheaply.
_chosen: dict[tuple[object, ...], OpenedBackend] = {}
_settings = ("DEVICEKIT_BACKEND", "DEVICEKIT_POLICY", "DEVICEKIT_ALLOWED_DISTRIBUTIONS")


@dataclass(slots=True)
class _Devices:
    """Those of one backend that are open, by index."""

    by_index: dict[int, Device] = field(default_factory=dict)
    inherited: bool = False  # from a parent process, which had opened them


_open: dict[OpenedBackend, _Devices] = {}

_ASKED_OF_MODULES = ("device_count", "is_available")  # a module that has neither is no device's


DeviceLike = str | torch.device | Device | torch.Tensor | ModuleType
"""What names a device: see `get_device`."""


def get_device(spec: DeviceLike | None = None) -> Device:
    """Open a device.

    A choice that succeeded stands for this process until a ``DEVICEKIT_*`` setting, ``sys.path`` or the set of
    registered backends changes; `devicekit.select` always looks anew.

    Args:
        spec: a backend's name or torch's device type, with or without an index (``"npu"``, ``"npu:1"``); a
            ``torch.device``; a tensor, for the device it lies on; one of torch's device modules (``torch.xpu``,
            or ``torch.accelerator`` for whichever there is), for its current device; a Device, which is returned
            as it is; or ``None`` for the device of the enclosing `use`, or else ``DEVICEKIT_BACKEND``, or else the
            best backend of this machine. Without an index it is device 0.

    Raises:
        SelectionError, ContractError: no backend could be chosen; see `devicekit.select`.
        InvalidDevice: the backend has no such index.
        ConfigurationError: ``spec`` is none of these.
    """
    if isinstance(spec, Device):
        return spec
    if isinstance(spec, torch.Tensor):
        spec = spec.device
    if isinstance(spec, torch.device):
        return device_of(_choose(spec.type, is_type=True), spec.index or 0)
    if spec is None and (default := _default.get()) is not None:
        return default
    text = requested_by_environment() if spec is None else spec
    if text is torch.accelerator:
        text = _module_of_accelerator()
    if (kind := _type_of_module(text)) is not None:
        return device_of(_choose(kind, is_type=True), _current_index(text))
    if text is None:
        return device_of(_choose(None), 0)
    name, index = parse_request(text)  # type: ignore[arg-type]  # whatever is no text is refused there
    return device_of(_choose(name), index or 0)


@contextmanager
def use(spec: str | torch.device | Device) -> Iterator[Device]:
    """Make a device the one that ``get_device()`` and every function with ``device=None`` answers with.

    Holds inside the ``with`` block, for this thread and this asynchronous task only: a thread started inside it
    begins without. Blocks nest, and the previous default returns on every exit. The vendor's own current device is
    not touched; `Device.current` does that.

    Raises:
        As `get_device`, on entry.
    """
    device = get_device(spec)
    token = _default.set(device)
    try:
        yield device
    finally:
        _default.reset(token)


def _module_of_accelerator() -> ModuleType:
    """The device module of the kind of accelerator that torch sees.

    Raises:
        BackendUnavailable: it sees none.
    """
    current = torch.accelerator.current_accelerator()
    if current is None:
        raise BackendUnavailable(
            "torch.accelerator was given for a device, and torch sees no accelerator on this machine."
        )
    found: ModuleType = torch.get_device_module(current)
    return found


def _type_of_module(spec: object) -> str | None:
    """The device type that one of torch's device modules serves: ``"xpu"`` of ``torch.xpu``."""
    name = None if isinstance(spec, str) else getattr(spec, "__name__", None)
    if not isinstance(name, str) or not any(callable(getattr(spec, one, None)) for one in _ASKED_OF_MODULES):
        return None
    kind = name.rpartition(".")[2]
    # A vendor's package may be what torch shows under a shorter name.
    known = next(
        (one for one, found in vars(torch).items() if found is spec and not one.startswith("_")), None
    )
    return known or kind


def _current_index(module: object) -> int:
    """The module's current device, asked only where that initialises nothing."""
    initialised, current = (getattr(module, name, None) for name in ("is_initialized", "current_device"))
    if initialised is None or current is None or not initialised():
        return 0
    found = current()
    return found if type(found) is int else 0  # torch.cpu answers with a word


def device_of(backend: OpenedBackend, index: int) -> Device:
    """The device at ``index`` of an opened backend.

    Raises:
        InvalidDevice: there is no such index.
        BackendUnavailable: this process was forked after its parent initialised the backend.
    """
    devices = _open.get(backend)
    if devices is not None:
        if devices.inherited:
            _refuse_bad_fork(backend)
        if (found := devices.by_index.get(index)) is not None:
            return found
    count = probe(backend).device_count
    if not 0 <= index < count:
        raise _no_such_index(backend, index, count)
    with registry_lock:
        devices = _open.setdefault(backend, _Devices())
        if index not in devices.by_index:
            devices.by_index[index] = Device(backend, index)
            backend.fix_device_count(count)
        return devices.by_index[index]


def _choose(request: str | None, *, is_type: bool = False) -> OpenedBackend:
    key = (request, is_type, registrations(), tuple(sys.path), *(os.environ.get(name) for name in _settings))
    backend = _chosen.get(key)
    if backend is None:
        if request is not None and is_type:
            backend = select_type(request).backend
        else:
            backend = select(request).backend
        with registry_lock:
            _forget_unregistered()
            _chosen[key] = backend
    return backend


def _forget_unregistered() -> None:
    """Let go of backends that were registered in this process and taken back since, and of their devices."""
    latest, current = registrations(), registered()
    for key in [one for one in _chosen if one[2] != latest]:
        del _chosen[key]
    for backend in [one for one in _open if one.candidate.factory and one.candidate not in current]:
        del _open[backend]


def _no_such_index(backend: OpenedBackend, index: int, count: int) -> InvalidDevice:
    if count == 0:
        listed = "it finds no hardware"
    else:
        listed = "index 0 is the only one" if count == 1 else f"indices 0 to {count - 1} exist"
    message = f"Backend {backend.label} has no device {index}: {listed}."
    if (variable := backend.manifest.visible_devices_variable) is not None:
        message += f" {variable} limits what this process sees."
    return InvalidDevice(message, backend=backend.name)


def _refuse_bad_fork(backend: OpenedBackend) -> None:
    is_bad_fork = backend.function("is_bad_fork")
    if is_bad_fork is None:
        return
    try:
        bad = is_bad_fork()
    except Exception as error:
        raise_as_hook_error(backend, "is_bad_fork", error)
    if bad is True:
        raise BackendUnavailable(
            f"Backend {backend.label} was initialised before this process was forked, and its devices cannot be "
            "used here. Start worker processes with the 'spawn' method.",
            backend=backend.name,
        )


def _as_text(device: Device) -> tuple[Callable[..., Device], tuple[str]]:
    return get_device, (f"{device.name}:{device.index}",)


copyreg.pickle(Device, _as_text)  # there is one per index and process: a copy is the device itself


def _note_fork() -> None:
    for devices in _open.values():
        devices.inherited = True


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_note_fork)
