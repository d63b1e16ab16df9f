"""The state of a process that a hook has no business with: take it before, take it after, say what differs."""

from __future__ import annotations

import contextlib
import logging
import os
import random
import signal
import sys
import tempfile
import threading
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass


def take() -> Mapping[str, object]:
    """Everything that is watched, by the words a message uses for it."""
    found: dict[str, object] = {
        f"the environment variable {name}": value for name, value in os.environ.items()
    }
    found["the working directory"] = os.getcwd()
    found["the threads"] = sorted(thread.name for thread in threading.enumerate())
    found["the root logger's handlers"] = [repr(one) for one in logging.root.handlers]
    found["the root logger's level"] = logging.root.level
    found["the warning filters"] = list(map(repr, warnings.filters))
    found["Python's random state"] = random.getstate()
    found["the recursion limit"] = sys.getrecursionlimit()
    found["the umask"] = _umask()
    for number in signal.valid_signals():
        found[f"the handler of signal {int(number)}"] = repr(signal.getsignal(number))
    if (torch := sys.modules.get("torch")) is not None:
        found["torch's default dtype"] = repr(torch.get_default_dtype())
        found["torch's default device"] = repr(torch.get_default_device())
        found["torch's host random state"] = bytes(torch.default_generator.get_state().tolist())
        found["torch's gradient mode"] = torch.is_grad_enabled()
        found["torch's thread count"] = torch.get_num_threads()
    return found


def differences(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """What changed between two snapshots, as parts of a sentence. Lengthy values are left out."""
    changed: list[str] = []
    for name in sorted(before.keys() | after.keys()):
        was, now = before.get(name), after.get(name)
        if was == now:
            continue
        if isinstance(was, (str, int, type(None))) and isinstance(now, (str, int, type(None))):
            changed.append(f"{name} is {now!r} instead of {was!r}")
        else:
            changed.append(f"{name} changed")
    return changed


def code_of(*packages: str) -> dict[str, int]:
    """Identity of every function and class member of the loaded modules of ``packages``."""
    found: dict[str, int] = {}
    for module_name, module in list(sys.modules.items()):
        if module is None or module_name.partition(".")[0] not in packages:
            continue
        for name, value in list(vars(module).items()):
            if not (isinstance(value, type) or callable(value)):
                continue
            found[f"{module_name}.{name}"] = id(value)
            if isinstance(value, type) and value.__module__ == module_name:
                found.update(
                    (f"{module_name}.{name}.{member}", id(inner))
                    for member, inner in vars(value).items()
                    if callable(inner) or isinstance(inner, (property, staticmethod, classmethod))
                )
    return found


@dataclass
class Output:
    """What was written to the process's own file descriptors, by Python or by C."""

    stdout: str = ""
    stderr: str = ""


@contextlib.contextmanager
def captured_output() -> Iterator[Output]:
    """Catch what is written to file descriptors 1 and 2 inside the block."""
    output = Output()
    with tempfile.TemporaryFile() as out, tempfile.TemporaryFile() as err:
        sys.stdout.flush()
        sys.stderr.flush()
        saved = os.dup(1), os.dup(2)
        os.dup2(out.fileno(), 1)
        os.dup2(err.fileno(), 2)
        try:
            yield output
        finally:
            sys.stdout.flush()
            sys.stderr.flush()
            for number, copy in enumerate(saved, 1):
                os.dup2(copy, number)
                os.close(copy)
            for stream, name in ((out, "stdout"), (err, "stderr")):
                stream.seek(0)
                setattr(output, name, stream.read().decode(errors="replace"))


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
