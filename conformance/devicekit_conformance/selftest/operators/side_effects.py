"""Side effects: every piece of state that Python, torch and the system keep for a whole process."""

from __future__ import annotations

import atexit
import builtins
import gc
import hashlib
import locale
import logging
import os
import random
import resource
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch

from devicekit.contract.hooks import HOOKS
from devicekit_conformance.selftest.building import Body, Call, faulty
from devicekit_conformance.selftest.honest import Honest
from devicekit_conformance.selftest.operators import Fault, operator

_TOLD = (
    "A hook leaves the process as it found it: it prints nothing and changes no thread, handler or default."
)


def _patch(module: object, name: str) -> None:
    honest = getattr(module, name)
    setattr(module, name, lambda *arguments, **keywords: honest(*arguments, **keywords))


def _numpy_seed() -> None:
    import numpy as np

    np.random.seed(0)


def _numpy_errors() -> None:
    import numpy as np

    np.seterr(all="ignore" if np.geterr()["over"] != "ignore" else "warn")


def _time_zone() -> None:
    os.environ["TZ"] = "Asia/Tokyo"
    time.tzset()


def _sharing() -> None:
    module: Any = torch.multiprocessing
    now = module.get_sharing_strategy()
    module.set_sharing_strategy("file_descriptor" if now != "file_descriptor" else "file_system")


def _print_options() -> None:
    module: Any = torch
    module.set_printoptions(precision=7 + time.monotonic_ns() % 5)


def _limit_files() -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft - 1, hard))


_kept: list[object] = []
EFFECTS: Mapping[str, Callable[[], object]] = {
    "sets_a_variable": lambda: os.environ.__setitem__("ACME_LOADED", str(time.monotonic_ns())),
    "removes_a_variable": lambda: os.environ.pop(next(iter(sorted(os.environ)))),
    "changes_the_folder": lambda: os.chdir("/" if os.getcwd() != "/" else "/usr"),
    "changes_the_umask": lambda: os.umask(0o027 if os.umask(0o077) != 0o027 else 0o077),
    "handles_a_signal": lambda: signal.signal(signal.SIGUSR2, lambda *rest: None),
    "handles_interrupts": lambda: signal.signal(signal.SIGINT, lambda *rest: None),
    "blocks_a_signal": lambda: signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1}),
    "sets_an_alarm": lambda: signal.setitimer(signal.ITIMER_PROF, 3600.0),
    "starts_a_thread": lambda: threading.Thread(target=time.sleep, args=(3600,), daemon=True).start(),
    "starts_a_process": lambda: _kept.append(subprocess.Popen(["sleep", "30"])),
    "opens_a_file": lambda: _kept.append(os.open(os.devnull, os.O_RDONLY)),
    "opens_a_socket": lambda: _kept.append(socket.socket()),
    "writes_a_file": lambda: Path("acme.log").write_text(str(time.monotonic_ns())),
    "writes_a_temporary_file": lambda: _kept.append(tempfile.mkstemp(prefix="acme")),
    "prints": lambda: print("acme: ready"),
    "prints_an_error": lambda: print("acme: ready", file=sys.stderr),
    "prints_from_c": lambda: os.write(1, b"acme: ready\n"),
    "logs_an_error": lambda: logging.getLogger("acme").error("not really an error"),
    "warns": lambda: warnings.warn("acme is experimental", stacklevel=1),
    "filters_warnings": lambda: warnings.filterwarnings("ignore", message=f"acme {time.monotonic_ns()}"),
    "adds_a_log_handler": lambda: logging.root.addHandler(logging.NullHandler()),
    "sets_the_log_level": lambda: logging.root.setLevel(logging.root.level + 1),
    "disables_logging": lambda: logging.disable(logging.root.manager.disable + 1),
    "seeds_python": lambda: random.seed(0),
    "seeds_numpy": _numpy_seed,
    "silences_numpy": _numpy_errors,
    "seeds_the_host": lambda: torch.default_generator.manual_seed(time.monotonic_ns()),
    "raises_the_recursion_limit": lambda: sys.setrecursionlimit(sys.getrecursionlimit() + 1),
    "changes_the_switch_interval": lambda: sys.setswitchinterval(sys.getswitchinterval() * 1.5),
    "stops_the_collector": lambda: gc.disable() if gc.isenabled() else gc.enable(),
    "tunes_the_collector": lambda: gc.set_threshold(gc.get_threshold()[0] + 1),
    "freezes_the_collector": gc.freeze,
    "adds_a_search_path": lambda: sys.path.append(f"/acme/{time.monotonic_ns()}"),
    "adds_an_importer": lambda: sys.meta_path.append(type("Finder", (), {"find_spec": lambda *rest: None})()),
    "replaces_stdout": lambda: setattr(sys, "stdout", open(os.devnull, "w", encoding="utf-8")),  # noqa: SIM115
    "replaces_excepthook": lambda: setattr(sys, "excepthook", lambda *rest: None),
    "replaces_thread_excepthook": lambda: setattr(threading, "excepthook", lambda *rest: None),
    "installs_a_profiler": lambda: sys.setprofile(lambda *rest: None),
    "registers_an_exit": lambda: atexit.register(lambda: None),
    "changes_the_locale": lambda: locale.setlocale(
        locale.LC_ALL, "C.UTF-8" if locale.setlocale(locale.LC_ALL) == "C" else "C"
    ),
    "changes_the_time_zone": lambda: _time_zone(),
    "limits_sockets": lambda: socket.setdefaulttimeout((socket.getdefaulttimeout() or 0.0) + 1.0),
    "limits_files": _limit_files,
    "is_nice": lambda: os.nice(1),
    "binds_to_a_core": lambda: os.sched_setaffinity(
        0, {sorted(os.sched_getaffinity(0))[0]} if len(os.sched_getaffinity(0)) > 1 else range(os.cpu_count() or 1)
    ),
    "patches_builtins": lambda: setattr(builtins, "acme", time.monotonic_ns()),
    "patches_json": lambda: _patch(__import__("json"), "dumps"),
    "patches_time": lambda: _patch(time, "sleep"),
    "patches_torch": lambda: _patch(torch, "zeros"),
    "patches_tensors": lambda: _patch(torch.Tensor, "tolist"),
    "sets_default_dtype": lambda: torch.set_default_dtype(
        torch.float64 if torch.get_default_dtype() == torch.float32 else torch.float32
    ),
    "sets_default_device": lambda: torch.set_default_device("cpu"),
    "stops_gradients": lambda: torch.set_grad_enabled(not torch.is_grad_enabled()),
    "sets_threads": lambda: torch.set_num_threads(torch.get_num_threads() % 7 + 1),
    "demands_determinism": lambda: torch.use_deterministic_algorithms(
        not torch.are_deterministic_algorithms_enabled(), warn_only=True
    ),
    "sets_precision": lambda: torch.set_float32_matmul_precision(
        "high" if torch.get_float32_matmul_precision() == "highest" else "highest"
    ),
    "flushes_denormals": lambda: torch.set_flush_denormal(True),
    "sets_print_options": _print_options,
    "detects_anomalies": lambda: torch.autograd.set_detect_anomaly(not torch.is_anomaly_enabled()),
    "sets_cudnn": lambda: setattr(torch.backends.cudnn, "benchmark", not torch.backends.cudnn.benchmark),
    "sets_sharing": _sharing,
    "warns_always": lambda: torch.set_warn_always(not torch.is_warn_always_enabled()),
}  # fmt: skip
SAYINGS = frozenset({"prints", "prints_an_error", "prints_from_c", "logs_an_error", "warns"})
# On loading these are what a plugin's own module may do, or what cannot be told from torch's own import. A
# vendor's package may import in its own way, and clear up when the process ends.
_NOT_ON_LOADING = frozenset(
    {
        "logs_an_error", "warns", "prints_an_error", "patches_torch", "patches_tensors", "adds_an_importer",
        "registers_an_exit",
    }
)  # fmt: skip


def _hooks_for(effect: str, count: int) -> list[str]:
    """Some hooks, always the same ones for one effect."""
    return sorted(HOOKS, key=lambda hook: hashlib.sha256(f"{effect}:{hook}".encode()).hexdigest())[:count]


def _body(effect: str, when: Callable[[int], bool]) -> Body:
    def body(call: Call) -> object:
        found = call.forward()
        call.memory["answered"] = call.memory.get("answered", 0) + 1  # a call that is refused does nothing
        if when(call.memory["answered"]):
            EFFECTS[effect]()
        return found

    return body


def _by_hook(when: Callable[[int], bool], count: int) -> Iterator[Fault]:
    for effect in EFFECTS:
        for hook in _hooks_for(effect, count):
            make = partial(faulty, {hook: _body(effect, when)})
            yield Fault(hook, effect, _TOLD, make)


@operator("side effect")
def on_the_first_call() -> Iterator[Fault]:
    """The first call of a hook changes the process."""
    return _by_hook(lambda number: number == 1, 3)


@operator("side effect")
def on_every_call() -> Iterator[Fault]:
    """Each call of a hook changes the process."""
    return _by_hook(lambda number: True, 2)


@operator("side effect")
def on_the_third_call() -> Iterator[Fault]:
    """The third call of a hook changes the process."""
    return _by_hook(lambda number: number == 3, 1)


@operator("side effect")
def on_construction() -> Iterator[Fault]:
    """Constructing the backend changes the process."""

    def constructing(effect: str) -> type[Honest]:
        def constructed(self: object) -> None:
            EFFECTS[effect]()

        return faulty({}, __init__=constructed)

    for effect in EFFECTS:
        if effect not in _NOT_ON_LOADING:
            yield Fault("", effect, _TOLD, partial(constructing, effect))


@operator("side effect")
def on_import() -> Iterator[Fault]:
    """Importing the backend changes the process."""

    def importing(effect: str) -> type[Honest]:
        EFFECTS[effect]()
        return faulty({})

    for effect in EFFECTS:
        if effect not in _NOT_ON_LOADING:
            yield Fault("", effect, _TOLD, partial(importing, effect))


@operator("side effect")
def at_exit() -> Iterator[Fault]:
    """The end of the process does something."""
    effects: dict[str, Callable[[], object]] = {
        "prints": EFFECTS["prints"],
        "raises": lambda: 1 / 0,
        "hangs": lambda: time.sleep(3600),
        "aborts": os.abort,
        "exits_with_1": lambda: os._exit(1),
        "writes_a_file": EFFECTS["writes_a_file"],
        "leaves_a_process": EFFECTS["starts_a_process"],
    }

    def ending(effect: str) -> type[Honest]:
        def constructed(self: object) -> None:
            atexit.register(effects[effect])

        return faulty({}, __init__=constructed)

    for effect in effects:
        told = "A process that used the device ends normally, and silently."
        yield Fault("", effect, told, partial(ending, effect))
