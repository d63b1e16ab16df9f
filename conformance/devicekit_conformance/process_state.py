"""All that Python, torch and the system keep once for a whole process, by the words that a message uses for it."""

from __future__ import annotations

import atexit
import builtins
import decimal
import faulthandler
import gc
import importlib
import locale
import logging
import multiprocessing
import operator
import os
import random
import resource
import signal
import socket
import stat
import sys
import tempfile
import threading
import time
import tracemalloc
import warnings
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path

from devicekit_conformance.processes import memory_tracker

__all__ = [
    "changes",
    "code",
    "descriptors",
    "leave_out",
    "python_state",
    "replaced",
    "system_state",
    "torch_state",
]

# Whose functions a backend might be tempted to replace.
_PATCHED = ("builtins", "os", "sys", "time", "json", "pickle", "random", "threading", "logging", "warnings",
            "signal",
            "socket", "subprocess", "io", "gc", "atexit", "tempfile", "multiprocessing", "importlib", "pluggy",
            "torch", "torch.nn", "torch.nn.functional", "torch.random", "torch.autograd", "torch.cuda",
            "torch.accelerator", "torch.serialization", "torch.multiprocessing", "numpy",
            "numpy.random")  # fmt: skip
_SIGNALS = tuple((f"the handler of signal {int(one)}", int(one)) for one in signal.valid_signals())
_SMALLEST = 5e-324  # what a processor that flushes denormal numbers takes for 0
_GENERATIONS = 3
_FLAGS = ("backends.cudnn.enabled", "backends.cudnn.benchmark", "backends.cudnn.deterministic",
          "backends.mkldnn.enabled", "backends.opt_einsum.enabled")  # fmt: skip
_GETTERS = ("get_default_dtype", "get_default_device", "is_grad_enabled", "is_inference_mode_enabled",
            "get_num_threads", "get_num_interop_threads", "are_deterministic_algorithms_enabled",
            "is_deterministic_algorithms_warn_only_enabled", "get_deterministic_debug_mode",
            "get_float32_matmul_precision", "is_warn_always_enabled", "is_anomaly_enabled",
            "is_anomaly_check_nan_enabled", "is_autocast_enabled", "is_autocast_cache_enabled", "initial_seed",
            "multiprocessing.get_sharing_strategy", "autograd._profiler_enabled", "hub.get_dir",
            "distributed.is_initialized")  # fmt: skip


class _Freezing:
    """How often the collector was seen to have been told to leave objects out.

    The suite's own processes do so with what they begin with, and counting what is left out takes as long as there
    is much of it. So an object is made at every look: if the collector leaves it out at the next, it was told to.
    """

    def __init__(self) -> None:
        self._newest: object = None
        self._times = 0

    def times(self) -> int:
        if self._newest is not None and not any(map(self._is_newest, range(_GENERATIONS))):
            self._times += 1
        self._newest = [None]
        return self._times

    def _is_newest(self, generation: int) -> bool:
        return any(map(partial(operator.is_, self._newest), gc.get_objects(generation)))


_freezing = _Freezing()


def leave_out() -> None:
    """Let the collector leave out all that there is now.

    A collection looks at every object, and in a fork copies the memory that it looks at.
    """
    gc.collect()
    gc.freeze()


def python_state() -> dict[str, object]:
    """What the interpreter and its library keep."""
    found: dict[str, object] = {
        "the threads": sorted(sys._current_frames()),
        "the thread names": sorted(one.name for one in threading.enumerate()),
        "the root logger's handlers": [repr(one) for one in logging.root.handlers],
        "the root logger's level": logging.root.level,
        "the level that logging is disabled at": logging.root.manager.disable,
        "the logger class": logging.getLoggerClass(),
        "the log record factory": logging.getLogRecordFactory(),
        "the warning filters": list(map(repr, warnings.filters)),
        "warnings.showwarning": id(warnings.showwarning),
        "Python's random state": random.getstate(),
        "the recursion limit": sys.getrecursionlimit(),
        "the thread switch interval": sys.getswitchinterval(),
        "the integer digits limit": getattr(sys, "get_int_max_str_digits", int)(),
        "whether the garbage collector runs": gc.isenabled(),
        "the garbage collector's thresholds": gc.get_threshold(),
        "the garbage collector's debug flags": gc.get_debug(),
        "how often the collector was told to leave objects out": _freezing.times(),
        "the garbage collector's callbacks": len(gc.callbacks),
        "the module search path": list(sys.path),
        "the importers": [id(one) for one in sys.meta_path],
        "the path hooks": [id(one) for one in sys.path_hooks],
        "the arguments of the program": list(sys.argv),
        "the functions that run at exit": getattr(atexit, "_ncallbacks")(),  # noqa: B009
        "whether bytecode is written": sys.dont_write_bytecode,
        "the tracing function": id(sys.gettrace()),
        "the profiling function": id(sys.getprofile()),
        "whether allocations are traced": tracemalloc.is_tracing(),
        "whether crashes are reported": faulthandler.is_enabled(),
        "the default start method of processes": multiprocessing.get_start_method(allow_none=True),
        "the default time limit of sockets": socket.getdefaulttimeout(),
        "the folder of temporary files": tempfile.tempdir,
        "the names in builtins": len(vars(builtins)),
        "the decimal context": repr(decimal.getcontext()),
        "the locale": locale.setlocale(locale.LC_ALL),
        "whether the smallest numbers are kept": _SMALLEST * 1.0 != 0.0,
    }
    for name in (
        "stdin",
        "stdout",
        "stderr",
        "excepthook",
        "unraisablehook",
        "displayhook",
        "breakpointhook",
    ):
        found[f"sys.{name}"] = id(getattr(sys, name))
    found["threading.excepthook"] = id(threading.excepthook)
    found.update(_numpy_state())
    return found


def system_state() -> dict[str, object]:
    """What the operating system keeps."""
    found: dict[str, object] = {
        f"the environment variable {name}": value for name, value in os.environ.items()
    }
    found["the working directory"] = os.getcwd()
    found["the umask"] = _umask()
    found["the time zone"] = time.tzname
    found["the priority"] = os.getpriority(os.PRIO_PROCESS, 0)
    if hasattr(os, "sched_getaffinity"):
        found["the cores it may run on"] = sorted(os.sched_getaffinity(0))
    found["the blocked signals"] = sorted(signal.pthread_sigmask(signal.SIG_BLOCK, ()))
    for name, number in _SIGNALS:
        found[name] = repr(signal.getsignal(number))
    for timer in (signal.ITIMER_REAL, signal.ITIMER_VIRTUAL, signal.ITIMER_PROF):
        found[f"whether timer {int(timer)} runs"] = any(signal.getitimer(timer))
    for name in (
        "RLIMIT_NOFILE",
        "RLIMIT_AS",
        "RLIMIT_CORE",
        "RLIMIT_STACK",
        "RLIMIT_DATA",
        "RLIMIT_MEMLOCK",
    ):
        found[f"the limit {name}"] = resource.getrlimit(getattr(resource, name))
    return found


def torch_state() -> dict[str, object]:
    """What torch keeps, where it was imported."""
    torch = sys.modules.get("torch")
    if torch is None:
        return {}
    found: dict[str, object] = {}
    for name in _GETTERS:
        getter = _attribute(torch, name)
        if callable(getter):
            try:
                found[f"torch.{name}()"] = repr(getter())
            except Exception:  # not in this build
                continue
    for name in _FLAGS:
        found[f"torch.{name}"] = repr(_attribute(torch, name))
    for name, getter in _private_getters():
        found[f"torch's {name[5:].replace('_', ' ')}"] = getter()
    for kind in (
        "function",
        "dispatch",
    ):  # a default device is such a mode, the one that is so anyway included
        depth = getattr(torch._C, f"_len_torch_{kind}_stack", int)
        found[f"the depth of torch's {kind} modes"] = depth()
    found["torch's host random state"] = torch.default_generator.get_state().numpy().tobytes()
    found["torch's print options"] = repr(vars(torch._tensor_str.PRINT_OPTS))
    return found


def descriptors() -> dict[int, str]:
    """Open files by number, without those that a driver, or who shares memory by torch or Python, may need."""
    found: dict[int, str] = {}
    _, tracker = memory_tracker()
    folder = Path("/proc/self/fd")
    for name in os.listdir(folder) if folder.is_dir() else ():
        try:
            number, target = int(name), os.readlink(folder / name)
            status = os.fstat(number)
        except OSError:
            continue  # the one that listed the folder
        device = stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) != 1  # /dev/null and its kin are 1
        shared = target.startswith(("anon_inode:", "/dev/shm/"))
        if number == tracker or device or shared:
            continue
        if not (stat.S_ISSOCK(status.st_mode) and _leads_to_torch(number)):
            found[number] = target
    return found


def _leads_to_torch(number: int) -> bool:
    """Whether a socket is connected to torch's manager of shared memory, of this process or of another."""
    try:
        one = socket.socket(fileno=number)  # and no copy, which another thread would see
    except OSError:
        return True  # closed meanwhile
    try:
        return "/torch-shm-dir-" in os.fsdecode(one.getpeername())
    except (OSError, TypeError):  # not connected, or to an address that is no path
        return one.family == socket.AF_UNIX  # whose other end has ended, or is still to answer
    finally:
        one.detach()


def files() -> list[str]:
    """What is in the working directory, where that is a folder made for one trial."""
    folder = os.getcwd()
    return sorted(os.listdir(folder)) if "dk-" in folder else []


def code() -> dict[str, dict[str, object]]:
    """What the modules and classes that a backend might patch hold now, for `replaced`."""
    found = {name: dict(vars(sys.modules[name])) for name in _PATCHED if name in sys.modules}
    torch = sys.modules.get("torch")
    if torch is not None:
        for kind in (torch.Tensor, torch.Generator, torch.nn.Module, torch.device):
            found[f"torch.{kind.__name__}"] = dict(vars(kind))
    return found


def replaced(before: Mapping[str, dict[str, object]], after: Mapping[str, dict[str, object]]) -> list[str]:
    """The names of functions and classes that are others now, as parts of a sentence.

    There are thousands, and this is asked at every call: all of them are compared by identity at once.
    """
    told: list[str] = []
    for name, was in before.items():
        now = after.get(name, {})
        if len(was) == len(now) and all(map(operator.is_, was.values(), now.values())):
            continue
        told += [
            f"the function {name}.{key} changed"
            for key in was.keys() | now.keys()
            if was.get(key) is not now.get(key) and (_is_code(was.get(key)) or _is_code(now.get(key)))
        ]
    return sorted(told)


def _is_code(value: object) -> bool:
    """Whether it is a function, a class or a property, of a module or of a class."""
    return callable(value) or hasattr(value, "__get__")


_cached: list[tuple[str, Callable[[], object]]] = []


def _private_getters() -> list[tuple[str, Callable[[], object]]]:
    """torch's own argumentless getters of plain settings, as many as this version has."""
    if not _cached:
        core = importlib.import_module("torch._C")
        setting = (
            "enabled",
            "_mode",
            "allow_",
            "deterministic",
            "benchmark",
            "precision",
            "_level",
            "prefer",
            "grad_",
        )
        left_out = ("cuda", "xpu", "mps", "mtia", "jit", "accelerator", "profil", "tracing", "graph_executor")
        for name in sorted(dir(core)):
            if not name.startswith("_get_") or any(one in name for one in left_out):
                continue
            if not any(one in name for one in setting):
                continue
            getter = getattr(core, name)
            try:
                value = getter()
            except Exception:
                continue
            if isinstance(value, (bool, int, float, str)):
                _cached.append((name, getter))
    return _cached


def _numpy_state() -> Iterator[tuple[str, object]]:
    numpy = sys.modules.get("numpy")
    if numpy is not None:
        state = numpy.random.get_state(legacy=False)
        yield "numpy's random state", repr((state["state"]["pos"], state["state"]["key"][:8].tolist()))
        yield "numpy's treatment of errors", repr(numpy.geterr())
        yield "numpy's print options", repr(numpy.get_printoptions())


def _attribute(module: object, path: str) -> object:
    found: object = module
    for name in path.split("."):
        found = getattr(found, name, None)
    return found


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def changes(before: Mapping[str, object], after: Mapping[str, object]) -> list[str]:
    """What differs, as parts of a sentence; lengthy values are left out."""
    told: list[str] = []
    for name in before.keys() | after.keys():
        was, now = before.get(name), after.get(name)
        if was == now:
            continue
        short = all(
            isinstance(one, (str, int, float, type(None))) and len(str(one)) < 60 for one in (was, now)
        )
        told.append(
            f"{name} is {now!r} instead of {was!r}" if short and "sys." not in name else f"{name} changed"
        )
    return sorted(told)
