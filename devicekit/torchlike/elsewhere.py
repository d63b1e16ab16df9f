"""Tries a device in a fresh Python, so that this process neither initialises it nor has to fork.

A forked child has one of its parent's many threads: locks that the others held stay locked, and a trial that
computes may wait for them for ever.
"""

from __future__ import annotations

import importlib.util
import sys
from typing import cast

import torch

from devicekit.fresh_python import ask_fresh_python

_SECONDS = 300.0  # a driver that compiles its kernels on first use takes a minute
_TRIAL = """
import importlib, json, sys
package, device_type = sys.argv[1:]
importlib.import_module(package)
import torch
if not hasattr(torch, device_type):
    raise SystemExit(f"{package} brings no torch.{device_type}")
from devicekit.torchlike.finding import plain
from devicekit.torchlike.generic import seen_here
print(json.dumps(plain(seen_here(device_type))))
"""


def package_of(device_type: str) -> str | None:
    """The package that another process can import to have ``torch.<device_type>``; ``None``: nobody can tell."""
    home, _, _ = str(getattr(getattr(torch, device_type, None), "__name__", "")).partition(".")
    # torch's own module, unless one was put in its place.
    wanted = f"torch.{device_type}" if home == "torch" else home
    try:
        found = importlib.util.find_spec(wanted) if wanted else None
    except (ImportError, ValueError):  # a module without a place
        return None
    return None if found is None or found.origin is None or not sys.executable else home


def try_elsewhere(device_type: str, package: str) -> dict[str, object]:
    """What `devicekit.torchlike.generic.seen_here` finds in a fresh Python that has imported ``package``.

    Raises:
        NoAnswer: it failed, or gave no answer in time.
    """
    return cast("dict[str, object]", ask_fresh_python(_TRIAL, package, device_type, seconds=_SECONDS))
