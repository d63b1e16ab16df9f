"""Tries hooks one at a time, each in a child process of its own in which nothing has happened yet."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import select
import shutil
import signal
import tempfile
import traceback
from collections.abc import Callable, Mapping, Sequence

from devicekit_conformance import process_state, processes, whereabouts
from devicekit_conformance.calibration import Deadline
from devicekit_conformance.context import Context, Failure, NotApplicable, NotRun, fail
from devicekit_conformance.effects import effect_of
from devicekit_conformance.telling import fact
from devicekit_conformance.trial import Trial, go_to_a_folder_in

__all__ = ["Script", "in_a_child", "try_each"]

Script = Callable[[Trial], None]
_SHOWN = 4


def try_each(ctx: Context, hooks: Sequence[str], script: Script, limit: float = 25.0) -> None:
    """Run ``script`` on every hook; fail with what failed, or raise `NotRun` where nothing could be decided."""
    warm_up()
    ctx.first_use  # noqa: B018  # found out while nothing has used the device
    faults: list[str] = []
    undecided: list[str] = []
    told: dict[str, list[str]] = {}
    for hook in hooks:
        ctx.note(hook)
        trial = Trial(ctx, hook)
        ended, said = in_a_child(ctx, trial, script, limit)
        told[hook] = trial.facts
        if ended == "fail":
            faults.append(said)
        elif ended == "not-run":
            undecided.append(f"{hook}: {said}")
    faults += [] if faults else _told_otherwise(ctx, told)
    if faults:
        more = f" (and {len(faults) - _SHOWN} more hooks)" if len(faults) > _SHOWN else ""
        fail("; ".join(faults[:_SHOWN]) + more)
    if undecided and len(undecided) == len(hooks):
        raise NotRun(undecided[0])


def _told_otherwise(ctx: Context, told: Mapping[str, list[str]]) -> list[str]:
    """Where this process is told something else than its children; after them, for asking may use a device."""
    faults = []
    for hook, there in told.items():
        try:
            here = fact(Trial(ctx, hook, watched=False)) if there else []
        except Failure as failure:
            here = [str(failure)]
        if here != there:
            faults.append(
                f"{hook}() says {there[0]:.100} in a forked child, and {here[0]:.100} in its parent"
            )
    return faults


def warm_up() -> None:
    """Import and remember here what every child would have to otherwise."""
    effect_of("")
    with contextlib.suppress(ImportError):
        # torch does so when it first meets a tensor subclass.
        importlib.import_module("torch.distributed.tensor")
    process_state.python_state()
    process_state.torch_state()


def in_a_child(ctx: Context, trial: Trial, script: Script, limit: float) -> tuple[str, str]:
    """Run ``script`` in a forked child: how it ended (pass, fail, n/a or not-run), and what it said."""
    folder = tempfile.mkdtemp(prefix="dk-")
    try:
        return _in_a_child(ctx, trial, script, limit, folder)
    finally:  # however the child ended
        shutil.rmtree(folder, ignore_errors=True)


def _in_a_child(ctx: Context, trial: Trial, script: Script, limit: float, folder: str) -> tuple[str, str]:
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reading)
        whereabouts.answer_into(writing)
        _run(trial, script, writing, folder)
    os.close(writing)
    received = _read(reading, limit)
    where = whereabouts.line_of(child, reading) if received is None else ""
    os.close(reading)
    if received is None:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        return "fail", f"{trial.hook}() did not return within {limit:g} s{where}"
    _, status = os.waitpid(child, 0)
    try:
        answer = json.loads(received)
    except ValueError:
        code = os.waitstatus_to_exitcode(status)
        how = f"was killed by {signal.Signals(-code).name}" if code < 0 else f"ended with status {code}"
        return "fail", f"{trial.hook}(): the process {how}"
    trial.facts[:] = answer["facts"]
    if answer["shares memory"]:
        _share_memory()
    return str(answer["ended"]), str(answer["said"])


def _share_memory() -> None:
    """Have torch start its manager of shared memory here, so that the children to come need none of their own.

    It is a program that loads all of torch, and each process starts one that has not inherited it.
    """
    import torch

    torch.empty(1, dtype=torch.uint8).untyped_storage()._share_filename_cpu_()


def _read(reading: int, limit: float) -> bytes | None:
    """All that comes through a pipe until it is closed; ``None`` when that takes too long."""
    received, deadline = b"", Deadline(limit)
    while True:
        if not select.select([reading], [], [], deadline.left())[0]:
            if deadline.left():
                continue
            return None
        piece = os.read(reading, 65536)
        if not piece or received.endswith(b"\n"):
            return received
        received += piece
        if received.endswith(b"\n"):
            return received


def _run(trial: Trial, script: Script, writing: int, folder: str) -> None:
    ended, said = "pass", ""
    try:
        go_to_a_folder_in(folder)
        # A file whose length tells what was written, by whomever.
        output = os.open(
            os.path.join(os.path.dirname(folder), f"{os.path.basename(folder)}.txt"), _NEW, 0o600
        )
        os.unlink(os.path.join(os.path.dirname(folder), f"{os.path.basename(folder)}.txt"))
        for number in (1, 2):
            os.dup2(output, number)
        os.close(output)
        script(trial)
    except Failure as failure:
        ended, said = "fail", str(failure)
    except NotApplicable as reason:
        ended, said = "n/a", str(reason)
    except NotRun as reason:
        ended, said = "not-run", str(reason)
    except BaseException as error:
        place = traceback.extract_tb(error.__traceback__)[-1]
        where = f"{os.path.basename(place.filename)}:{place.lineno}"
        ended, said = "fail", f"{trial.hook}(): {type(error).__name__}: {str(error)[:200]} at {where}"
    said = said.encode("utf-8", "backslashreplace").decode()[:2000]
    shares = processes.torch_shares_memory()
    answer = {"ended": ended, "said": said, "facts": trial.facts, "shares memory": shares}
    with contextlib.suppress(OSError):
        os.write(writing, json.dumps(answer).encode() + b"\n")
    os._exit(0)


_NEW = os.O_CREAT | os.O_RDWR | os.O_EXCL
