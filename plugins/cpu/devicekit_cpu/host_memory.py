"""How much memory this process may use, container limits included, and how to give some back."""

from __future__ import annotations

import ctypes
import functools
import os
import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

_MEMINFO = Path("/proc/meminfo")
_OWN_CGROUP = Path("/proc/self/cgroup")
_CGROUP_ROOT = Path("/sys/fs/cgroup")
_UNLIMITED = 2**62  # version 1 writes "no limit" as the largest number of whole pages


@dataclass(frozen=True, slots=True)
class Limits:
    """Bytes this process can still get, and could get at most. ``None``: the system does not say."""

    free: int | None
    total: int | None


def limits() -> Limits:
    """The tightest of the machine's memory and every control group above this process."""
    machine = _machine()
    frees = [machine.free]
    totals = [machine.total]
    for group in _own_groups():
        limit, used, reclaimable = _group_memory(group)
        if limit is not None and (machine.total is None or limit < machine.total):
            totals.append(limit)
            if used is not None:
                # The page cache is charged to the group and given up under pressure.
                frees.append(max(0, limit - used + (reclaimable or 0)))
    return Limits(_smallest(frees), _smallest(totals))


def trim() -> None:
    """Hand unused heap pages back to the system, where the C library can (glibc)."""
    release = _malloc_trim()
    if release is not None:
        release(0)


def processor_name() -> str | None:
    """The processor's marketing name, where the system gives one."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            key, _, value = line.partition(":")
            if key.strip() in ("model name", "Model"):
                return value.strip() or None
    except OSError:
        return platform.processor() or None
    return platform.processor() or None


def usable_cores() -> int | None:
    """Logical processors this process may run on."""
    try:
        return len(os.sched_getaffinity(0))
    except AttributeError:  # not on macOS or Windows
        return os.cpu_count()


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    try:
        function: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return function


def _machine() -> Limits:
    try:
        fields = dict(line.split(":", 1) for line in _MEMINFO.read_text(encoding="ascii").splitlines())
        return Limits(_kibibytes(fields.get("MemAvailable")), _kibibytes(fields.get("MemTotal")))
    except (OSError, ValueError):
        return Limits(None, _sysconf_total())


def _kibibytes(text: str | None) -> int | None:
    return None if text is None else int(text.split()[0]) * 1024


def _sysconf_total() -> int | None:
    try:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (AttributeError, ValueError, OSError):
        return None


def _own_groups() -> list[Path]:
    """This process's control group and its parents: any of them may hold the limit."""
    try:
        lines = _OWN_CGROUP.read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    groups: list[Path] = []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        root = _CGROUP_ROOT / "memory" if controllers else _CGROUP_ROOT
        own = root / path.lstrip("/")
        groups += [group for group in (own, *own.parents) if group == root or root in group.parents]
    return groups


def _group_memory(group: Path) -> tuple[int | None, int | None, int | None]:
    """Limit, usage and reclaimable page cache of one group, version 2 or 1, in bytes."""
    statistics = group / "memory.stat"
    if (group / "memory.max").exists():
        used = _number(group / "memory.current")
        return _number(group / "memory.max"), used, _statistic(statistics, "inactive_file")
    limit = _number(group / "memory.limit_in_bytes")
    if limit is not None and limit >= _UNLIMITED:
        limit = None
    # Version 1 counts a group's children only under the "total_" names.
    used = _number(group / "memory.usage_in_bytes")
    return limit, used, _statistic(statistics, "total_inactive_file")


def _number(path: Path) -> int | None:
    try:
        text = path.read_text(encoding="ascii").strip()
    except OSError:
        return None
    return int(text) if text.isdigit() else None  # "max" means no limit


def _statistic(path: Path, key: str) -> int | None:
    try:
        for line in path.read_text(encoding="ascii").splitlines():
            name, _, value = line.partition(" ")
            if name == key:
                return int(value)
    except (OSError, ValueError):
        return None
    return None


def _smallest(values: list[int | None]) -> int | None:
    known = [value for value in values if value is not None]
    return min(known) if known else None
