"""Weight update from tensors: handed over in process, as safetensors bytes, in a flat bucket, or by IPC handle."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import torch

from devicekit.device import Device
from devicekit.scheduling.errors import InvalidOperation
from devicekit.scheduling.messages import Reply
from devicekit.weights.handles import import_json
from devicekit.weights.operations import UpdateWeightsFromIPC, UpdateWeightsFromTensor
from devicekit.weights.store import StagedTensors
from devicekit.weights.update import Updater

Named = Iterable[tuple[str, torch.Tensor]]


def tensor_handler(updater: Updater) -> Callable[[UpdateWeightsFromTensor], Callable[[], Reply | None]]:
    """The handler of `UpdateWeightsFromTensor`."""

    def handle(operation: UpdateWeightsFromTensor) -> Callable[[], Reply | None]:
        given = _named(operation)
        return updater.begin(operation, lambda: updater.store.stage(given, operation.selector))

    return handle


def ipc_handler(updater: Updater) -> Callable[[UpdateWeightsFromIPC], Callable[[], Reply | None]]:
    """The handler of `UpdateWeightsFromIPC`. UnsupportedHook where the device's backend has no IPC."""
    device = updater.store.device

    def handle(operation: UpdateWeightsFromIPC) -> Callable[[], Reply | None]:
        device.require("import_ipc")
        if not operation.handles:
            raise InvalidOperation("A weight update by IPC needs at least one handle.")

        def load() -> StagedTensors:
            given: list[tuple[str, torch.Tensor]] = []

            def let_go() -> None:
                device.synchronize()  # the exporter may free its memory as soon as this is answered
                given.clear()
                device.collect_ipc()

            try:
                given.extend((name, _imported(device, one)) for name, one in operation.handles.items())
                return updater.store.stage(given, operation.selector, let_go)
            except Exception:
                let_go()
                raise

        return updater.begin(operation, load)

    return handle


def _imported(device: Device, handle: object) -> torch.Tensor:
    return import_json(device, handle) if isinstance(handle, Mapping) else device.import_ipc(handle)


def _named(operation: UpdateWeightsFromTensor) -> Named:
    given = [operation.tensors, operation.safetensors, operation.bucket]
    if sum(one is not None for one in given) != 1:
        raise InvalidOperation(
            "A weight update needs tensors, safetensors bytes or a bucket, and only one of them."
        )
    if operation.tensors is not None:
        return list(operation.tensors.items())
    if operation.bucket is not None:
        return list(operation.bucket.unpack())
    return _from_safetensors(operation.safetensors or b"")


def _from_safetensors(content: bytes) -> Named:
    try:
        from safetensors import SafetensorError
        from safetensors.torch import load
    except ImportError as error:
        raise InvalidOperation(
            "Reading safetensors needs the package safetensors: pip install 'devicekit[transformers]'."
        ) from error
    try:
        tensors: dict[str, torch.Tensor] = load(content)
    except (SafetensorError, ValueError, KeyError) as error:
        raise InvalidOperation(f"These bytes are not safetensors: {error}.") from error
    return list(tensors.items())
