"""Arguments with which any hook can be called, found by the names and types of its parameters."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from devicekit_conformance import frozen_contract
from devicekit_conformance.trial import Trial

__all__ = ["arguments_for"]

_ERROR = RuntimeError("an error that is none of the backend's")


def _host_tensor(trial: Trial) -> object:
    import torch

    return torch.arange(64, dtype=torch.uint8)


def _shared_event(trial: Trial) -> object:
    """An event that other processes can wait for; ``None`` where the backend makes none."""
    if not trial.has("create_event") or len(trial.ctx.opened.parameters("create_event")) < 3:
        return None
    return trial.ctx.raw_hook("create_event")(trial.index, False, True)


_BY_NAME: Mapping[str, Callable[[Trial], Any]] = {
    "index": lambda trial: trial.index,
    "peer": lambda trial: (trial.others or [trial.index])[0],
    "priority": lambda trial: 0,
    "timing": lambda trial: True,
    "fraction": lambda trial: 1.0,
    "seed": lambda trial: 7,
    "enabled": lambda trial: False,
    "error": lambda trial: _ERROR,
    "stream": lambda trial: trial.new_stream(),
    "tensor": lambda trial: trial.filled(4096, 7) if trial.hook == "export_ipc" else _host_tensor(trial),
    "event": lambda trial: _shared_event(trial),
    "state": lambda trial: trial.other("get_rng_state", trial.index),
}
_BY_TYPE: Mapping[str, Callable[[Trial], Any]] = {
    "int": lambda trial: 0,
    "bool": lambda trial: False,
    "float": lambda trial: 1.0,
    "str": lambda trial: "",
    "torch.Tensor": _host_tensor,
    "Stream": lambda trial: trial.new_stream(),
    "BaseException": lambda trial: _ERROR,
}


def arguments_for(trial: Trial) -> tuple[Any, ...] | None:
    """Legal arguments of the hook on trial; ``None`` where none can be made here."""
    from devicekit.contract.hooks import HOOKS, BackendSpec

    spec = HOOKS[trial.hook]
    if frozen_contract.is_newer(trial.hook) and spec.kind.value == "ordering" and spec.returns == "None":
        return None  # it changes something, and only its own effect knows how to change it back
    made: list[Any] = []
    declared = inspect.signature(getattr(BackendSpec, trial.hook)).parameters
    for parameter in (declared[name] for name in trial.ctx.opened.parameters(trial.hook)):
        if parameter.name in HOOKS[trial.hook].added:
            made += frozen_contract.asking_nothing(trial.hook, 0, [parameter.name])
            continue
        maker = _BY_NAME.get(parameter.name) or _BY_TYPE.get(str(parameter.annotation))
        if maker is None:
            return None
        value = maker(trial)
        if value is None:
            return None
        made.append(value)
    return tuple(made)
