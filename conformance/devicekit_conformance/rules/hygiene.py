"""DK-HYG: calling a hook does what it says and leaves nothing else behind."""

from __future__ import annotations

import gc
import os
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from devicekit_conformance import frozen_contract, snapshot
from devicekit_conformance.context import MIB, Context, Failure, NotApplicable, NotRun, expect, fail
from devicekit_conformance.measures import BLOCK
from devicekit_conformance.outcomes import Level
from devicekit_conformance.rulebook import requirement
from devicekit_conformance.whereabouts import held_up

_AFTER = ("DK-CORE-005",)


def _harmless(ctx: Context) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Every hook that can be called with nothing but an index, and its arguments."""
    for name in sorted(ctx.implemented):
        spec = frozen_contract.hook(name)
        if spec.harmless:
            yield name, (0,) if spec.parameters else ()


@requirement("DK-HYG-001", profile="core", after=_AFTER)
def hooks_print_nothing(ctx: Context) -> None:
    """A hook MUST NOT write to standard output or standard error, from Python or from C."""
    for name, arguments in _harmless(ctx):
        with snapshot.captured_output() as captured:
            ctx.hook(name)(*arguments)
        wrote = captured.stdout or captured.stderr
        expect(not wrote, f"{name} wrote {wrote[:200]!r}")


@requirement("DK-HYG-002", profile="core", after=_AFTER)
def hooks_leave_the_process_alone(ctx: Context) -> None:
    """A hook MUST NOT change threads, signal handlers, logging, warnings, random state or defaults."""
    for name, arguments in _harmless(ctx):
        ctx.hook(name)(*arguments)  # a first call may set up what later calls use
        before = snapshot.take()
        ctx.hook(name)(*arguments)
        changed = snapshot.differences(before, snapshot.take())
        expect(not changed, f"{name}: {'; '.join(changed)}")


@requirement("DK-HYG-003", profile="core", isolated=60.0, device=False, after=_AFTER)
def hooks_leave_the_environment_alone(ctx: Context) -> None:
    """A hook MUST NOT read its settings into, or write to, the environment, not even when it is first called."""
    if ctx.device_count == 0:
        raise NotRun("there is no device on this machine")
    before = dict(os.environ)
    for name, arguments in _harmless(ctx):
        ctx.hook(name)(*arguments)
        changed = sorted(key for key in {*before, *os.environ} if before.get(key) != os.environ.get(key))
        expect(not changed, f"{name} changed {', '.join(changed)}")


@requirement("DK-HYG-004", profile="core", after=_AFTER)
def hooks_leak_no_objects(ctx: Context) -> None:
    """A hook MUST NOT keep an object for each call."""
    gc.collect()
    gc.disable()  # what it frees of others would hide what a hook keeps
    try:
        for name, arguments in _harmless(ctx):
            hook = ctx.hook(name)
            # What an interpreter keeps while it warms up, it does not keep again. What torch frees late comes and
            # goes by a hundred objects or so, however many calls there were.
            for most in (100, 100, 1000):
                grown, calls = _kept(hook, arguments, most)
                if grown < calls // 2:
                    break
            else:
                fail(f"{calls} calls of {name} left {grown} objects behind")
    finally:
        gc.enable()


def _kept(hook: Callable[..., object], arguments: tuple[object, ...], most: int) -> tuple[int, int]:
    """How many more objects there are after so many calls, or as many as a second has room for; and how many."""
    ends = time.monotonic() + 1.0
    before = sys.getallocatedblocks()
    calls = 0
    while calls < most and (calls < 10 or time.monotonic() < ends):
        hook(*arguments)
        calls += 1
    if sys.getallocatedblocks() - before >= calls // 2:
        gc.collect()  # garbage in cycles is no leak
    return sys.getallocatedblocks() - before, calls


@requirement("DK-HYG-011", Level.SHOULD, profile="core", isolated=60.0, after=_AFTER)
def hooks_leak_no_native_memory(ctx: Context) -> None:
    """A hook SHOULD NOT keep memory of the process for each call, whoever allocates it."""
    statm = Path("/proc/self/statm")
    if not statm.is_file():
        raise NotApplicable("the process's memory cannot be read on this system")

    def resident() -> int:
        return int(statm.read_text(encoding="ascii").split()[1]) * os.sysconf("SC_PAGE_SIZE")

    for name, arguments in _harmless(ctx):
        hook = ctx.hook(name)
        grown = []
        for _ in range(3):  # what the process needs once, it does not need again
            before, calls = resident(), 0
            ends = time.perf_counter() + 0.1
            while calls < 1000 and time.perf_counter() < ends:
                hook(*arguments)
                calls += 1
            grown.append(resident() - before)
            if grown[-1] < max(MIB, calls * 1024):
                break
        else:
            fail(f"each {calls} calls of {name} made the process larger by {min(grown)} bytes or more")


@requirement("DK-HYG-005", profile="core", after=_AFTER)
def hooks_leak_no_files(ctx: Context) -> None:
    """A hook MUST NOT leave files or sockets open."""
    folder = Path("/proc/self/fd")
    if not folder.is_dir():
        raise NotApplicable("open files cannot be counted on this system")
    for name, arguments in _harmless(ctx):
        ctx.hook(name)(*arguments)
        before = len(list(folder.iterdir()))
        for _ in range(20):
            ctx.hook(name)(*arguments)
        grown = len(list(folder.iterdir())) - before
        expect(grown < 20, f"20 calls of {name} left {grown} files open")


@requirement("DK-HYG-006", profile="core", after=_AFTER)
def hooks_can_be_called_from_threads(ctx: Context) -> None:
    """Hooks MUST be callable from several threads at once, with the same results."""
    failures: list[str] = []

    def call_all() -> None:
        for _ in range(5):
            for name, arguments in _harmless(ctx):
                try:
                    ctx.check_type(name, ctx.hook(name)(*arguments))
                except Failure as failure:
                    failures.append(str(failure))
                    return

    threads = [threading.Thread(target=call_all, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    late = held_up(*threads)
    expect(not late, f"one of four threads {late}")
    expect(not failures, failures[0] if failures else "")


@requirement("DK-HYG-007", profile="memory", hooks=["memory_stats"], after=["DK-STATE-006"])
def hooks_leak_no_device_memory(ctx: Context) -> None:
    """A hook MUST NOT keep device memory for each call."""
    before = getattr(ctx.hook("memory_stats")(0), "allocated", None)
    if before is None:
        raise NotApplicable("allocated is unknown on this backend")
    for name, arguments in _harmless(ctx):
        for _ in range(20):
            ctx.hook(name)(*arguments)
        after = getattr(ctx.hook("memory_stats")(0), "allocated", None)
        expect(after == before, f"allocated went from {before} to {after} by calling {name} 20 times")


@requirement("DK-HYG-008", profile="memory", hooks=["memory_stats"], after=["DK-STATE-006"])
def threads_lose_no_updates(ctx: Context) -> None:
    """Statistics MUST be exact when several threads allocate and free at once."""
    before = getattr(ctx.hook("memory_stats")(0), "allocated", None)
    if before is None:
        raise NotApplicable("allocated is unknown on this backend")

    def churn() -> None:
        for _ in range(20):
            block = ctx.probe.tensor(BLOCK // 64, 0)
            del block

    threads = [threading.Thread(target=churn, daemon=True) for _ in range(4)]
    for thread in threads:
        thread.start()
    late = held_up(*threads)
    expect(not late, f"one of four threads {late}")
    ctx.hook("synchronize")(0)
    after = getattr(ctx.hook("memory_stats")(0), "allocated", None)
    expect(after == before, f"allocated went from {before} to {after} although everything was freed")
