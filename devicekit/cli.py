"""The ``devicekit`` command. Each sub-command is a module of its own, imported only when it is asked for."""

from __future__ import annotations

import errno
import importlib
import os
import signal
import sys
import warnings
from collections.abc import Callable, Mapping, Sequence
from importlib import metadata
from types import MappingProxyType
from typing import cast

from devicekit.contract.errors import DeviceKitError
from devicekit.contract.text import shown
from devicekit.registry.installed import entries

COMMAND_GROUP = "devicekit.commands"

_BUILT_IN: Mapping[str, tuple[str, str]] = MappingProxyType(
    {
        "list": ("devicekit.commands.list_backends", "what is installed; imports neither torch nor a plugin"),
        "info": (
            "devicekit.commands.info",
            "which backend was chosen and why, its devices, hooks and memory",
        ),
        "demo": ("devicekit.commands.demo", "serve a small model through one reinforcement-learning cycle"),
        "example-model": ("devicekit.commands.example_model", "write a small model to try everything with"),
        "top": ("devicekit.commands.top", "watch a device's memory, or an engine's recording, live"),
        "plot": ("devicekit.commands.plot", "draw a recorded timeline as HTML or PNG"),
        "replay": ("devicekit.commands.replay", "what a device's allocator makes of a log of allocations"),
        "baseline": ("devicekit.commands.baseline", "record what runs cost, and compare later ones"),
        "doctor": ("devicekit.commands.doctor", "what is wrong with this installation; works without torch"),
        "audit": ("devicekit.commands.audit", "where engine code names a vendor"),
        "new-backend": ("devicekit.commands.new_backend", "start a backend of your own"),
        "generate": ("devicekit.commands.generate", "complete a prompt with a local model"),
        "serve": ("devicekit.commands.serve", "serve a local model over HTTP"),
        "fleet": ("devicekit.commands.fleet", "steer several engines as one"),
    }
)
# What commands need that are not in every installation.
_EXTRAS: Mapping[str, str] = MappingProxyType(
    dict.fromkeys(("demo", "example-model", "generate", "info"), "transformers")
)
# Commands of distributions that may not be installed, and what to install for them.
_ELSEWHERE: Mapping[str, str] = MappingProxyType({"conformance": "devicekit[conformance]"})


# What a shell adds to a signal's number.
_ENDED_BY = 128
# A full disk, a quota, a limit on a file's size, a device that fails: no fault of the command's.
_NOT_WRITTEN = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO})


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a sub-command; returns the exit status (2: wrong usage)."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    _open_closed_streams()
    try:
        status = _run(given)
        sys.stdout.flush()
        return status
    except KeyboardInterrupt:
        return _ENDED_BY + signal.SIGINT
    except (
        BrokenPipeError
    ):  # the reader, `head` for one, has seen enough; what was still to come is not known
        _write_no_more()
        return _ENDED_BY + signal.SIGPIPE
    except (DeviceKitError, ModuleNotFoundError, OSError) as error:
        if (said := _in_words(given[0] if given else "", error)) is None:
            raise
        print(f"{' '.join(['devicekit', *given[:1]])}: {said}", file=sys.stderr)
        return 1


def _run(given: Sequence[str]) -> int:
    if not given or given[0] in ("-h", "--help"):
        print(_usage())
        return 0 if given else 2
    if given[0] in ("-V", "--version"):
        from devicekit import __version__

        print(f"devicekit {__version__}")
        return 0
    # torch warns of a missing numpy when it is imported; a command that needs numpy says so itself.
    warnings.filterwarnings("ignore", message="Failed to initialize NumPy")
    run = _load(given[0])
    return run if isinstance(run, int) else run(given[1:])


def _open_closed_streams() -> None:
    """Open what is closed of the standard streams: the next file would get its number, and what is printed."""
    for number, mode in enumerate("rww"):
        try:
            os.fstat(number)
        except OSError:
            stream = os.fdopen(os.open(os.devnull, os.O_RDWR), mode)
            setattr(sys, ("stdin", "stdout", "stderr")[number], stream)


def _write_no_more() -> None:
    """Let what is still to be written go nowhere; the interpreter flushes once more at its end."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _in_words(command: str, error: Exception) -> str | None:
    """What to tell of a command that failed; ``None`` if the failure is a fault of ours."""
    if isinstance(error, DeviceKitError):
        return str(error)
    if isinstance(error, OSError) and error.filename is not None:  # a file or folder that somebody named
        return f"{error.strerror}: {error.filename}"
    if isinstance(error, OSError) and error.errno in _NOT_WRITTEN:
        _write_no_more()
        return f"what it writes could not be written: {error.strerror}"
    return _missing(command, error)


def _load(name: str) -> Callable[[Sequence[str]], int] | int:
    """The command, or the exit status if there is none."""
    try:
        return _find(name) or 2
    except Exception as error:
        # Most commands import torch. Where that fails, an error of its inside is no answer.
        if _missing(name, error) is not None or (said := _torch_trouble()) is None:
            raise
        print(f"devicekit {name}: {said}", file=sys.stderr)
        return 1


def _missing(command: str, error: Exception) -> str | None:
    """What to install for a command of which a package is not here; ``None`` if that is not what is wrong."""
    if not isinstance(error, ModuleNotFoundError) or command not in _EXTRAS:
        return None
    package = (error.name or "").partition(".")[0]
    if package in ("", "devicekit", "torch"):  # a fault of ours, and what the doctor knows more about
        return None
    return f"{package} is not installed: pip install 'devicekit[{_EXTRAS[command]}]'"


def _find(name: str) -> Callable[[Sequence[str]], int] | None:
    if name in _BUILT_IN:
        module = importlib.import_module(_BUILT_IN[name][0])
        return cast("Callable[[Sequence[str]], int]", module.main)
    for entry in entries(COMMAND_GROUP):
        if entry.name == name and entry.problem is None:
            found = metadata.EntryPoint(name, entry.value, COMMAND_GROUP).load()
            return cast("Callable[[Sequence[str]], int]", found)
    if name in _ELSEWHERE:
        message = f"{shown(name)} is not installed. Try: pip install '{_ELSEWHERE[name]}'"
    else:
        message = f"there is no command {shown(name)}. See: devicekit --help"
    print(f"devicekit: {message}", file=sys.stderr)
    return None


def _torch_trouble() -> str | None:
    """What the doctor says of importing torch; ``None`` if it has no complaint."""
    from devicekit.devtools.doctor.diagnosis import torch_problems

    problems = torch_problems()
    return "\n".join(f"{one.what}\n  {one.remedy}" for one in problems) or None


def _usage() -> str:
    commands = {name: text for name, (_, text) in _BUILT_IN.items()}
    for entry in entries(COMMAND_GROUP):
        if entry.problem is None:
            commands.setdefault(entry.name, f"from {entry.distribution}")
    width = max(map(len, commands))
    lines = [f"  {name:<{width}}  {text}" for name, text in commands.items()]
    return (
        "usage: devicekit COMMAND [OPTIONS]\n\n"
        + "\n".join(lines)
        + "\n\ndevicekit COMMAND --help says more."
    )


if __name__ == "__main__":
    sys.exit(main())
