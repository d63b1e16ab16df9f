"""What a function takes an argument for: a device, the back end of collectives, or what its keyword says."""

from __future__ import annotations

# Functions whose argument at a position names a device.
_TAKE_DEVICE = {
    "torch.device": 0, "torch.set_default_device": 0, "torch.autocast": 0, "torch.amp.autocast": 0,
    "torch.is_autocast_enabled": 0, "torch.get_autocast_dtype": 0, "torch.set_autocast_enabled": 0,
    "torch.set_autocast_dtype": 0, "torch.amp.is_autocast_available": 0,
    "torch.Generator": 0, "torch.amp.GradScaler": 0, "torch.distributed.device_mesh.init_device_mesh": 0,
    "torch.distributed.init_device_mesh": 0,
}  # fmt: skip
_TAKE_COLLECTIVE = frozenset({"init_process_group", "new_group"})


def role(path: str, number: int, keyword: str | None) -> str:
    """What an argument of a function is: "device", "backend", or the keyword's own name.

    Args:
        path: the function's, as far as it is known.
        number: the argument's position; of no meaning with a keyword.
    """
    if path.rpartition(".")[2] in _TAKE_COLLECTIVE:
        return "backend" if keyword == "backend" or (keyword is None and number == 0) else (keyword or "")
    if keyword is None:
        return "device" if _TAKE_DEVICE.get(path) == number else ""
    return "" if keyword == "backend" else keyword
