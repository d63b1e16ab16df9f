"""What a function takes an argument for: a device, the back end of collectives, or what its keyword says."""

from __future__ import annotations

import ast
import re

# Functions whose argument at a position names a device.
_TAKE_DEVICE = {
    "torch.device": 0, "torch.set_default_device": 0, "torch.autocast": 0, "torch.amp.autocast": 0,
    "torch.is_autocast_enabled": 0, "torch.get_autocast_dtype": 0, "torch.set_autocast_enabled": 0,
    "torch.set_autocast_dtype": 0, "torch.amp.is_autocast_available": 0,
    "torch.Generator": 0, "torch.amp.GradScaler": 0, "torch.distributed.device_mesh.init_device_mesh": 0,
    "torch.distributed.init_device_mesh": 0,
}  # fmt: skip
# What only sets something for a type of device, or asks how it is set: torch serves it without such a device.
_SET_FOR_TYPE = re.compile(r"(\w+\.)*(\w*autocast\w*|\w*GradScaler|custom_[fb]wd|fork_rng)")
_EXPECTS = re.compile(r"_?(expect|support|requir|allow|valid|known|saved|orig|old_|previous)")
# Decorators that hand on what they are given.
_HAND_ON = re.compile(
    r"(torch\.(no_grad|inference_mode|enable_grad)|(functools\.)?(lru_cache|cache|wraps)|(contextlib\.)?contextmanager)"
    r"(\(.*\))?"
)
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


def expects(name: str) -> bool:
    """Whether what a name is given is compared with, and not used: ``expected_device``."""
    return _EXPECTS.match(name) is not None


def sets_for_type(path: str) -> bool:
    """Whether a function takes a type of device without using such a device, as ``torch.autocast`` does."""
    return _SET_FOR_TYPE.fullmatch(path) is not None


def parameters_of(node: ast.AST | None) -> list[str]:
    """What a function or class of this file takes by position; empty where that cannot be told.

    A class takes what its own ``__init__`` does. A decorator may take something of its own first.
    """
    if isinstance(node, ast.ClassDef):
        made = [one for one in node.body if isinstance(one, ast.FunctionDef) and one.name == "__init__"]
        changed = node.decorator_list or node.keywords or len(made) != 1
        return [] if changed else parameters_of(made[0])[1:]
    if not isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
        return []
    if not all(_HAND_ON.fullmatch(ast.unparse(one)) for one in node.decorator_list):
        return []
    return [one.arg for one in (*node.args.posonlyargs, *node.args.args)]
