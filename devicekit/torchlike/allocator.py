"""The settings of torch's caching allocators, which only private functions of torch read and change.

Those functions are named here and nowhere else. Settings are written ``name:value,name:value``, in square brackets
where a value is a list.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from types import ModuleType

import torch

from devicekit.contract import AllocatorSetting

_FIXED = frozenset({"backend"})  # chosen when torch is imported
_SETTING = re.compile(r"\s*([A-Za-z_]\w*)\s*:\s*((?:\[[^\]]*\]|[^,\[])+)\s*(?:,|$)")
_NAME = re.compile(r"[A-Za-z_]\w*")
# A word, a number or a list of numbers. torch itself reads the beginning of what is not one, and wraps negatives.
_VALUE = re.compile(r"[A-Za-z_]\w*|[0-9]{1,18}(?:\.[0-9]+)?|\[[0-9>:,\s]*\]", re.ASCII)


def readable() -> bool:
    """Whether torch tells its settings (since 2.9)."""
    return hasattr(torch._C, "_accelerator_getAllocatorSettings")


def writable(module: ModuleType) -> bool:
    """Whether torch, or the vendor's module, changes settings."""
    return hasattr(torch._C, "_accelerator_setAllocatorSettings") or _own(module) is not None


def settings() -> Sequence[AllocatorSetting]:
    """The settings made by variable or function; what was never set has its default, and is not told."""
    said = str(torch._C._accelerator_getAllocatorSettings())
    return [
        AllocatorSetting(name, value.strip(), name not in _FIXED) for name, value in _SETTING.findall(said)
    ]


def change(module: ModuleType, name: str, value: str) -> None:
    """Change one setting and keep the others, which torch would take back to their defaults.

    Raises:
        ValueError: the setting does not exist, is fixed, or takes no such value.
    """
    if _NAME.fullmatch(name) is None or _VALUE.fullmatch(value) is None:
        raise ValueError(f"{name!r} set to {value!r} is no setting of an allocator")
    if name in _FIXED:
        raise ValueError(f"{name} is fixed since the allocator started; set it in the environment instead")
    kept = {one.name: one.value for one in settings()} if readable() else {}
    text = ",".join(f"{key}:{one}" for key, one in {**kept, name: value}.items())
    own = _own(module)
    change_all = own if own is not None else torch._C._accelerator_setAllocatorSettings
    try:
        change_all(text)
    except (RuntimeError, LookupError) as error:  # torch's words for an unknown key or a wrong value
        raise ValueError(f"{name}:{value} was refused: {error}") from error


def _own(module: ModuleType):  # type: ignore[no-untyped-def]  # whatever function the vendor has
    return getattr(getattr(module, "memory", None), "_set_allocator_settings", None)
