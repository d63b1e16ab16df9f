"""Handles of shared tensors as JSON, so that they travel between processes without pickling anything.

A handle is written field by field. Reading one takes values only, and puts them where a handle of this device has
such values. So the sender never decides which classes and functions are used.
"""

from __future__ import annotations

import base64
import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import NoReturn

import torch

from devicekit.device import Device
from devicekit.scheduling.errors import InvalidOperation
from devicekit.weights.bucket import parse_dtype


def handle_to_json(handle: object) -> object:
    """What `Device.export_ipc` gave, as a value that any JSON library writes.

    Raises:
        TypeError: it holds something that JSON cannot tell.
    """
    if handle is None or isinstance(handle, str | int):
        return handle
    if isinstance(handle, bytes):
        return {"base64": base64.b64encode(handle).decode()}
    if isinstance(handle, torch.dtype):
        return str(handle).removeprefix("torch.")
    if isinstance(handle, tuple):
        return [handle_to_json(one) for one in handle]
    if callable(handle):
        return _name(handle)
    if dataclasses.is_dataclass(handle):
        return {one.name: handle_to_json(getattr(handle, one.name)) for one in dataclasses.fields(handle)}
    raise TypeError(f"{type(handle).__name__} in a handle cannot be told in JSON.")


def import_json(device: Device, document: object) -> torch.Tensor:
    """The tensor behind a handle that another process exported on a device of this kind, and told in JSON.

    Raises:
        InvalidOperation: it is no such handle.
        UnsupportedHook: this device shares no memory between processes.
    """
    device.require("export_ipc", "import_ipc")
    own = device.export_ipc(torch.zeros(1, dtype=torch.uint8, device=device.torch_device))
    return device.import_ipc(handle_from_json(document, own))


def handle_from_json(document: object, like: object, where: str = "handle") -> object:
    """Read what `handle_to_json` wrote of a handle of the same kind as ``like``.

    Raises:
        InvalidOperation: it is of another kind.
    """
    if isinstance(like, bytes):
        return _bytes(document, where)
    if isinstance(like, torch.dtype):
        return parse_dtype(document) if isinstance(document, str) else _refuse(where, "the name of a type")
    if isinstance(like, tuple):
        return _read_tuple(document, like, where)
    if isinstance(like, type):
        return like
    if callable(like):
        return like if document == _name(like) else _refuse(where, repr(_name(like)))
    if dataclasses.is_dataclass(like) and not isinstance(like, type):
        names = {one.name for one in dataclasses.fields(like)}
        if not isinstance(document, Mapping) or document.keys() != names:
            _refuse(where, f"an object of {', '.join(sorted(names))}")
        parts = {
            name: handle_from_json(document[name], getattr(like, name), f"{where}.{name}") for name in names
        }
        return dataclasses.replace(like, **parts)
    if type(document) is not type(like):
        _refuse(where, f"of type {type(like).__name__}")
    return document


def _read_tuple(document: object, like: tuple[object, ...], where: str) -> tuple[object, ...]:
    if not isinstance(document, Sequence) or isinstance(document, str):
        _refuse(where, "a list")
    if all(type(one) is int for one in like):  # a shape, or strides
        if not all(type(one) is int and abs(one) < 2**62 for one in document):
            _refuse(where, "a list of whole numbers")
        return type(like)(document)
    if len(document) != len(like):
        _refuse(where, f"a list of {len(like)}")
    pairs = zip(document, like, strict=True)
    return tuple(handle_from_json(one, known, f"{where}[{at}]") for at, (one, known) in enumerate(pairs))


def _name(function: Callable[..., object]) -> str:
    return f"{function.__module__}.{function.__qualname__}"


def _bytes(document: object, where: str) -> bytes:
    text = document.get("base64") if isinstance(document, Mapping) else None
    if not isinstance(text, str):
        _refuse(where, 'bytes, as {"base64": …}')
    try:
        return base64.b64decode(text, validate=True)
    except ValueError:
        _refuse(where, 'bytes, as {"base64": …}')


def _refuse(where: str, wanted: str) -> NoReturn:
    raise InvalidOperation(f"This is no handle of a tensor on such a device: {where} must be {wanted}.")
