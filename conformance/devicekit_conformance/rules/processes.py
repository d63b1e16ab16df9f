"""DK-PROC: forking, exiting, crossing processes and joining a group of them."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, cast

from devicekit_conformance import frozen_contract
from devicekit_conformance.calibration import Deadline
from devicekit_conformance.context import Context, NotApplicable, NotRun, expect, fail
from devicekit_conformance.measures import BLOCK
from devicekit_conformance.outcomes import Level
from devicekit_conformance.processes import end_session, in_session
from devicekit_conformance.rulebook import requirement
from devicekit_conformance.use_and_exit import EXIT_STATUS, facts

if TYPE_CHECKING:
    import torch

    from devicekit.contract.handles import Event

_FAR = 3 << 20  # bytes, at which a tensor may begin in its storage
_CHILD_LIMIT = 15.0  # seconds
_EXIT_LIMIT = 60.0  # seconds, the import of torch included
_LEFT_LIMIT = 5.0  # seconds after that


@requirement("DK-PROC-001", profile="processes", isolated=60.0, device=False)
def asking_does_not_poison_fork(ctx: Context) -> None:
    """is_available() and device_count() MUST answer the same in a child that is forked after they were asked."""
    asked = ctx.raw_hook("is_available")(), ctx.raw_hook("device_count")()

    def again() -> bool:
        return (ctx.raw_hook("is_available")(), ctx.raw_hook("device_count")()) == asked

    _expect_of_child(again, f"the parent was told {asked}, and the child something else")


@requirement("DK-PROC-002", profile="processes", isolated=60.0, device=False)
def a_fork_of_a_used_device_admits_it(ctx: Context) -> None:
    """In a forked child that cannot use the device, memory_stats() MUST return, with unknown numbers.

    Vendors' own functions answer 0 there, which an engine's monitor would report as an empty device.
    """
    read = ctx.raw_hook("memory_stats")

    def admits() -> bool:
        found = read(0)
        return all(getattr(found, name) is None for name in frozen_contract.STATS_FIELDS) or _works(ctx)

    with _used_device(ctx):
        _expect_of_child(admits, "the child was given numbers")


@requirement("DK-PROC-014", profile="processes", isolated=60.0, hooks=["memory_snapshot"], device=False)
def a_fork_of_a_used_device_sees_no_segments(ctx: Context) -> None:
    """In a forked child that cannot use the device, memory_snapshot() MUST return ``None``.

    A list, even an empty one, would be read as what the device holds; an exception ends a monitor that only looks.
    """
    look = ctx.raw_hook("memory_snapshot")
    with _used_device(ctx):
        _expect_of_child(lambda: look(0) is None or _works(ctx), "the child was given segments")


def _works(ctx: Context) -> bool:
    """Whether the device can be used in this process, which some survive being forked for."""
    try:
        return bool((ctx.probe.tensor(4096, 0).fill_(5) == 5).all().item())
    except Exception:
        return False


@requirement("DK-PROC-003", profile="processes", hooks=["is_bad_fork"], device=False)
def a_first_process_is_no_bad_fork(ctx: Context) -> None:
    """is_bad_fork() MUST be False in a process that did not use the device before it was forked."""
    expect(ctx.result("is_bad_fork") is False, "it is True in a process that used no device")


@requirement("DK-PROC-004", profile="processes", hooks=["collective_backend"], device=False)
def collective_backend_is_known(ctx: Context) -> None:
    """collective_backend() MUST be the manifest's, and a name that torch.distributed accepts."""
    import torch.distributed as dist

    name = ctx.result("collective_backend")
    told = ctx.manifest.collective_backend
    expect(told is None or told == name, f"it is {name!r}, and the manifest says {told!r}")
    if not dist.is_available():
        raise NotRun("this torch has no distributed package")
    accepted = set(dist.Backend.backend_list)
    known = accepted.issuperset(_backends_of(str(name)))
    expect(known, f"it is {name!r}, and torch.distributed knows {', '.join(sorted(accepted))}")


def _backends_of(name: str) -> list[str]:
    """The backends in a name for torch.distributed: one, or one for each device type (``cpu:gloo,acme:accl``)."""
    return [one.rpartition(":")[2] for one in name.split(",")] if ":" in name else [name]


@requirement("DK-PROC-005", profile="processes", hooks=["visible_devices_variable"], device=False)
def visible_devices_variable_is_the_manifests(ctx: Context) -> None:
    """visible_devices_variable() MUST be what the manifest says, a variable name or None."""
    name = ctx.result("visible_devices_variable")
    told = ctx.manifest.visible_devices_variable
    expect(name == told, f"it is {name!r}, and the manifest says {told!r}")
    expect(name is None or str(name).isidentifier(), f"{name!r} is no variable's name")


@requirement("DK-PROC-006", profile="hardware", isolated=60.0, device=False)
def hiding_every_device_hides_them(ctx: Context) -> None:
    """With the visible-devices variable set to nothing, device_count() MUST be 0."""
    variable = ctx.manifest.visible_devices_variable
    if variable is None:
        raise NotApplicable("there is no such variable")
    os.environ[variable] = ""
    count = ctx.raw_hook("device_count")()
    expect(count == 0, f"{variable} is empty, and device_count() is {count}")


@requirement("DK-PROC-007", profile="processes", after=["DK-ORDER-001"])
def records_cross_processes(ctx: Context) -> None:
    """What observing hooks return MUST survive pickling, so that it can be sent to another process."""
    for name in ("device_properties", "memory_stats", "memory_info", "host_memory_stats"):
        if ctx.has(name):
            found = ctx.hook(name)(*((0,) if frozen_contract.hook(name).parameters else ()))
            try:
                same = pickle.loads(pickle.dumps(found)) == found
            except Exception as error:
                fail(f"the result of {name} cannot be pickled: {type(error).__name__}: {error}")
            expect(same, f"the result of {name} is another after pickling")


@requirement("DK-PROC-008", profile="processes", isolated=90.0, device=False, unwaivable=True)
def a_used_device_lets_the_process_end(ctx: Context) -> None:
    """A process that used the device MUST be able to end normally, with the exit status that it chose, in
    reasonable time."""
    if ctx.device_count == 0:
        raise NotRun("there is no device on this machine")
    done = _run_alone(ctx, "devicekit_conformance.use_and_exit")
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    chosen = f"instead of {EXIT_STATUS}"
    expect(done.returncode == EXIT_STATUS, f"the process ended with status {done.returncode} {chosen} {last}")
    expect(b"Traceback" not in done.stderr, f"an exception was printed when the process ended {last}")
    try:
        there = json.loads(done.stdout.decode().strip().splitlines()[-1])
    except (ValueError, IndexError):
        fail(f"the process did not say what it was told {last}")
    here = json.loads(json.dumps(facts(ctx)))
    for name, value in there.items():
        expect(
            here.get(name) == value, f"{name} is {value} in a process of its own, and {here.get(name)} here"
        )


def _run_alone(ctx: Context, module: str, given: bytes = b"") -> subprocess.CompletedProcess[bytes]:
    """Run one of the suite's modules on this backend in an interpreter of its own."""
    command = [sys.executable, "-m", module, ctx.target.address]
    if ctx.target.probe is not None:
        command.append(ctx.target.probe)
    entries = [os.path.abspath(entry) for entry in sys.path]  # an empty one is the folder where this runs
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(entries)}
    # Files, because a pipe stays open as long as whoever inherited it; a session, to find who that is.
    with (
        tempfile.TemporaryDirectory() as folder,
        tempfile.TemporaryFile() as told,
        tempfile.TemporaryFile() as said,
        tempfile.TemporaryFile() as warned,
    ):
        told.write(given)
        told.seek(0)
        process = subprocess.Popen(
            command, cwd=folder, env=environ, stdin=told, stdout=said, stderr=warned, start_new_session=True
        )
        try:
            _wait_for(process)
            ends = time.monotonic() + _LEFT_LIMIT  # helpers of a vendor's may end a moment after it
            while (left := in_session(process.pid)) and time.monotonic() < ends:
                time.sleep(0.05)
        except TimeoutError:
            fail(f"the process did not end within {_EXIT_LIMIT:g} s")
        finally:
            end_session(process.pid)
            process.wait()
        names = ", ".join(sorted({one.name for one in left}))
        expect(not left, f"the process ended, and what it had started runs on: {names}")
        written = ", ".join(sorted(os.listdir(folder))) if process.returncode in (0, EXIT_STATUS) else ""
        expect(not written, f"the process ended, and left files where it ran: {written}")
        said.seek(0)
        warned.seek(0)
        return subprocess.CompletedProcess(command, process.returncode, said.read(), warned.read())


def _wait_for(process: subprocess.Popen[bytes]) -> None:
    deadline = Deadline(_EXIT_LIMIT)
    while left := deadline.left():
        with suppress(subprocess.TimeoutExpired):
            process.wait(left)
            return
    raise TimeoutError


@contextmanager
def _used_device(ctx: Context) -> Iterator[None]:
    """A device that holds something, and so a context that a fork loses."""
    if ctx.device_count == 0:
        raise NotRun("there is no device on this machine")
    if ctx.probe.initialised() is None:
        raise NotApplicable("this device has no context that a fork could lose")
    block = ctx.probe.tensor(BLOCK, 0)
    yield
    del block


def _expect_of_child(question: Callable[[], bool], message: str) -> None:
    """Fork; fail unless the child answers True in time."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = 0 if question() else 3
        except BaseException as error:  # whatever it is, the parent must hear of it
            os.write(2, f"in the forked child: {type(error).__name__}: {error}\n".encode())
        os._exit(code)
    status = _wait(child, _CHILD_LIMIT)
    if status is None:
        fail(f"the forked child did not answer within {_CHILD_LIMIT:g} s")
    expect(status != 1, "the forked child raised an exception")
    expect(status >= 0, f"the forked child was killed by signal {-status}")
    expect(status == 0, message)


def _wait(child: int, limit: float) -> int | None:
    """A child's exit status, negative for a signal; ``None`` (and it is killed) when it takes too long."""
    deadline = Deadline(limit)
    while deadline.left():
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            return os.waitstatus_to_exitcode(status)
        time.sleep(0.005)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    return None


@requirement("DK-PROC-009", profile="processes", hooks=["export_ipc"], capabilities=["ipc"])
def handles_can_be_pickled(ctx: Context) -> None:
    """export_ipc() MUST return a handle that can be pickled."""
    handle = ctx.hook("export_ipc")(ctx.probe.tensor(BLOCK, 0))
    try:
        pickle.loads(pickle.dumps(handle))
    except Exception as error:
        fail(f"the handle cannot be pickled: {type(error).__name__}: {error}")


@requirement("DK-PROC-011", profile="processes", capabilities=["ipc"], after=["DK-PROC-009", "DK-PROC-008"])
def a_tensor_is_shared_with_another_process(ctx: Context) -> None:
    """A tensor that was exported MUST be the same memory, shape, type and device where another process imports it.

    The other process reads it and writes to it, and what it wrote is read here.
    """
    import torch

    from devicekit_conformance.import_elsewhere import IMPORTS

    numbers = torch.arange(3000, dtype=torch.int32)
    blocks = []
    for index in range(min(ctx.device_count, 2)):
        whole = ctx.probe.tensor(numbers.nbytes, index).view(torch.int32)
        whole.copy_(numbers)
        blocks.append(whole.reshape(60, 50))
        floats = ctx.probe.tensor(2400, index).view(torch.float32)
        floats.copy_(numbers[:600])
        large = ctx.probe.tensor(_FAR + 4096, index)
        large[_FAR : _FAR + 64].copy_(numbers[:64].to(torch.uint8))
        blocks.append(large[_FAR : _FAR + 64])
        blocks += [floats[:200], floats[350:].reshape(10, 25), floats[300], floats[303:340].reshape(1, 37, 1)]
        for dtype in (torch.float16, torch.bfloat16, torch.uint8, torch.int64):
            other = ctx.probe.tensor(64 * dtype.itemsize, index).view(dtype)
            blocks.append(other.copy_(numbers[:64].to(dtype)))
        if _can_export(ctx, whole.reshape(60, 50).t()):
            blocks.append(floats[200:300].reshape(25, 4).t())
        ctx.hook("synchronize")(index)
    wanted = [block.cpu().clone() for block in blocks]
    export = ctx.hook("export_ipc")  # a handle is good for one import
    handles = [[pickle.dumps(export(block)) for _ in range(IMPORTS)] for block in blocks[:1]]
    handles += [[pickle.dumps(export(block)) for _ in range(2)] for block in blocks[1:]]
    for name in ("collect_ipc", "empty_cache"):  # nobody has finished using them yet
        if ctx.has(name):
            ctx.hook(name)()
    kept = [torch.equal(block.cpu(), was) for block, was in zip(blocks, wanted, strict=True)]
    expect(all(kept), "what was exported holds other data")
    done = _run_alone(ctx, "devicekit_conformance.import_elsewhere", pickle.dumps(handles))
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    try:
        told = json.loads(done.stdout.decode().strip().splitlines()[-1])
    except (ValueError, IndexError):
        fail(f"import_ipc() did not give the tensor to another process {last}")
    expect(len(told) == len(blocks), "import_ipc() returned no tensor")
    for block, was, seen in zip(blocks, wanted, told, strict=True):
        here = {
            "the sum": int(was.to(torch.int64).sum()),
            "what comes first": was.reshape(-1)[:8].to(torch.int64).tolist(),
            "the shape": list(block.shape),
            "the type": str(block.dtype),
            "the device": block.device.index,
        }
        for name, value in here.items():
            expect(seen[name] == value, f"{name} of the imported tensor is {seen[name]}, and {value} here")
        shared = torch.equal(block.cpu(), was + 1)
        expect(shared, "what another process wrote to the imported tensor is not seen here: it is a copy")


def _can_export(ctx: Context, tensor: torch.Tensor) -> bool:
    """Whether the backend exports such a tensor at all."""
    try:
        ctx.raw_hook("export_ipc")(tensor)
    except Exception:
        return False
    return True


@requirement("DK-PROC-015", profile="processes", after=["DK-PROC-008"], since="1.1")
def an_event_is_shared_with_another_process(ctx: Context) -> None:
    """An event that was exported MUST be done in another process as soon as it is done here, and no sooner.

    Its handle can be pickled.
    """
    if not ctx.claims("event_sharing"):
        raise NotApplicable("the backend does not claim event_sharing")
    make = cast("Callable[..., Event]", ctx.raw_hook("create_event"))
    ended, pending = (make(0, False, True) for _ in range(2))
    ended.record()
    ctx.hook("synchronize")(0)
    token = ctx.probe.submit(0, None)
    pending.record()
    handles = []
    for event in (ended, pending):
        try:
            handles.append(pickle.dumps(ctx.hook("export_event")(event)))
        except Exception as error:
            fail(f"the handle cannot be pickled: {type(error).__name__}: {error}")
    done = _run_alone(ctx, "devicekit_conformance.wait_elsewhere", pickle.dumps(handles))
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    try:
        told = json.loads(done.stdout.decode().strip().splitlines()[-1])
    except (ValueError, IndexError):
        fail(f"import_event() did not give the events to another process {last}")
    expect(told[0] is True, "an event that is done here is pending in another process")
    if token is not None and not token.done():
        expect(told[1] is False, "an event that is pending here is done in another process")
    ctx.hook("synchronize")(0)


@requirement("DK-PROC-010", Level.SHOULD, profile="processes", isolated=60.0, device=False)
def memory_statistics_start_no_process(ctx: Context) -> None:
    """Reading memory_stats() or memory_info() SHOULD NOT start another process."""
    reading = [name for name in ("memory_stats", "memory_info") if ctx.has(name)]
    if not reading or ctx.device_count == 0:
        raise NotApplicable("there is nothing to read")
    started: list[str] = []
    sys.addaudithook(
        lambda event, arguments: (
            started.append(repr(arguments[0]))
            if event in ("subprocess.Popen", "os.system", "os.fork")
            else None
        )
    )
    for name in reading:
        ctx.hook(name)(0)
    expect(not started, f"it started {', '.join(started[:3])}")


@requirement(
    "DK-PROC-012", Level.SHOULD, profile="hardware", isolated=90.0, device=False, after=["DK-PROC-008"]
)
def two_processes_share_a_device(ctx: Context) -> None:
    """A second process SHOULD be able to use a device that this one is using."""
    if ctx.device_count == 0:
        raise NotRun("there is no device on this machine")
    block = ctx.probe.tensor(BLOCK, 0)
    ctx.hook("synchronize")(0)
    done = _run_alone(ctx, "devicekit_conformance.use_and_exit")
    del block
    last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
    expect(done.returncode == EXIT_STATUS, f"the second process ended with status {done.returncode} {last}")


@requirement("DK-PROC-013", profile="hardware", hooks=["collective_backend"], after=["DK-PROC-004"])
def collective_backend_is_built_in(ctx: Context) -> None:
    """The collective_backend() of a device that is present MUST be available in this torch."""
    import torch.distributed as dist

    if not dist.is_available():
        raise NotRun("this torch has no distributed package")
    for name in _backends_of(str(ctx.result("collective_backend"))):
        expect(dist.is_backend_available(name), f"this torch was built without {name!r}")
