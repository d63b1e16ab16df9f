"""Every hook of the contract: its signature, its kind, and what a device does when a backend lacks it.

A vendor writes a class whose methods bear `hookimpl` and repeat these signatures exactly: the same argument names
in the same order, no keyword-only arguments, and no defaults, except that an argument which a later contract
appended may have one (``interprocess=False``, ``pool=None``), so that older hosts can call the hook. Indices are
plain ints from 0. What follows holds for every hook that does not say otherwise, and for the methods of the
objects that hooks return.

- A hook does not print, change the current device or stream, or read or write the environment.
- A hook that observes or releases initialises no device unless it says that it may. One that orders work, sets a
  limit or hands out memory may initialise the device it is asked about.
- Apart from what initialising a device does, a hook leaves the process as it found it: folders, limits, signals,
  threads, open files, random states, locale, logging, warning filters, and the defaults of Python and torch. It
  also leaves what other hooks set or count: peaks, counters, limits, settings. Memory in use stays as it is.
- Apart from what loading the vendor's own software does, importing the plugin and making its object leave the
  process as a hook must. They initialise no device, and the process may fork afterwards.
- Each thread has its own current device, and its own current stream on each device. A new thread begins on device
  0 and on default streams, whatever the thread that started it had made current.
- A hook does the same each time, in every thread, in a child that was forked before anything initialised the
  device, and after a call that raised. It may be called from a finalizer, and so while another hook of the same
  thread runs.
- A hook keeps no tensor and no error that it is given, and writes to none. What it returns is not changed by later
  calls.
- For a device that does not exist, a hook raises, in whatever words, or says that it knows nothing; it never takes
  another device for it. What is the same on every device may be answered for any index, and what belongs to no
  device yet, as a new event, may be made for any.
- Sizes may be counted in pages of up to 64 MiB. How long a hook takes is limited only where it says something
  about waiting.
- Where manifest and hook name the same thing, they agree. A hook that the object sets to ``None`` is absent, and
  what the manifest says of it (``noop``, ``emulated``, a capability) falls with it and is no fault.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

import pluggy

from devicekit.contract.handles import DeviceGraph, Event, MemoryPool, Stream
from devicekit.contract.records import (
    AllocatorSetting,
    DeviceProperties,
    ErrorKind,
    HostMemoryStats,
    MemoryInfo,
    MemoryStats,
    ProcessMemory,
    Telemetry,
)
from devicekit.contract.spec import PROJECT, HookKind, HookSpec, collect, hook

if TYPE_CHECKING:
    import torch

hookimpl = pluggy.HookimplMarker(PROJECT)
"""Marks a backend's method as a hook."""

_REQUIRED, _ORDERING = HookKind.REQUIRED, HookKind.ORDERING
_RELEASING, _OBSERVING = HookKind.RELEASING, HookKind.OBSERVING


class BackendSpec:
    """The hooks of contract 1.1."""

    # -- Presence ---------------------------------------------------------------------------------------------

    @hook(_REQUIRED, "Presence")
    def is_available(self) -> bool:
        """Whether this backend can run on this machine now.

        Never raises, creates no context and does not poison ``fork``. Called with a time limit.
        """
        raise NotImplementedError

    @hook(_REQUIRED, "Presence")
    def device_count(self) -> int:
        """Number of devices visible to this process; 0 exactly when `is_available` is false."""
        raise NotImplementedError

    # -- Selection --------------------------------------------------------------------------------------------

    @hook(_ORDERING, "Selection")
    def current_index(self) -> int:
        """Index of the calling thread's current device. May initialise."""
        raise NotImplementedError

    @hook(_ORDERING, "Selection")
    def set_index(self, index: int) -> None:
        """Make ``index`` the calling thread's current device. May initialise."""
        raise NotImplementedError

    @hook(_OBSERVING, "Selection")
    def device_properties(self, index: int) -> DeviceProperties:
        """What device ``index`` is, whichever one is current. May initialise.

        It stays the same while the process lives, unless somebody changes the machine.
        """
        raise NotImplementedError

    @hook(_OBSERVING, "Selection", since="1.1")
    def supported_dtypes(self, index: int) -> frozenset[torch.dtype] | None:
        """The dtypes in which the device multiplies matrices; ``None`` if that is not known. May initialise.

        All floating-point ones must be listed; integers and complex numbers may be left out. Of the 8-bit floats,
        only those that the hardware has: ``float8_e4m3fn`` and ``float8_e4m3fnuz`` differ, and one that software
        multiplies by way of another format is left out.
        """
        raise NotImplementedError

    @hook(_OBSERVING, "Selection", since="1.1")
    def can_access_peer(self, index: int, peer: int) -> bool:
        """Whether kernels on the device can reach the memory of device ``peer``. May initialise.

        Where both are the same device, either answer is allowed: nobody needs to ask.
        """
        raise NotImplementedError

    # -- Ordering ---------------------------------------------------------------------------------------------

    @hook(_REQUIRED, "Ordering")
    def synchronize(self, index: int) -> None:
        """Block until all work submitted to the device, on every stream, has finished."""
        raise NotImplementedError

    @hook(_ORDERING, "Ordering")
    def current_stream(self, index: int) -> Stream:
        """The calling thread's current stream on the device. Equal streams are the same stream."""
        raise NotImplementedError

    @hook(_ORDERING, "Ordering")
    def create_stream(self, index: int, priority: int) -> Stream:
        """A stream to work on. Lower numbers run first; 0 is the default, and out-of-range values are clamped.

        The first eight of one priority on one device differ; a runtime that has no more may then hand them out
        again.
        """
        raise NotImplementedError

    @hook(_ORDERING, "Ordering")
    def use_stream(self, stream: Stream) -> AbstractContextManager[object]:
        """A context in which ``stream`` is current; the one at its entry is restored on every exit.

        Its device may be the current one inside, as with most vendors' own; after it, the device is as before.
        It is entered once, by the thread that works on the stream, and swallows no exception.
        """
        raise NotImplementedError

    @hook(_ORDERING, "Ordering", since="1.1")
    def set_current_stream(self, stream: Stream) -> None:
        """Make ``stream`` the calling thread's current one on its device, until another is set.

        Nothing else changes: neither other devices' streams nor the current device.
        """
        raise NotImplementedError

    @hook(_ORDERING, "Ordering", since="1.1")
    def default_stream(self, index: int) -> Stream:
        """The stream that is current on the device in a thread that set none; the same one each time."""
        raise NotImplementedError

    @hook(_ORDERING, "Ordering", since="1.1")
    def native_handle(self, stream: Stream) -> int:
        """The stream as the vendor's own libraries take it: the value of a pointer, opaque to everybody else.

        It names the vendor's queue, not the Python object: equal streams have the same handle each time, and
        streams of a device that are not equal have different ones. It is valid while ``stream`` or an equal one
        lives, as wide as a pointer, and without a sign. 0 is the default stream of some runtimes, and no error.
        """
        raise NotImplementedError

    @hook(_OBSERVING, "Ordering", since="1.1")
    def priority_range(self, index: int) -> tuple[int, int] | None:
        """The lowest and the highest priority of a stream, as in ``(0, -5)``; ``None`` if it is not known.

        ``(0, 0)`` where there is only one.
        """
        raise NotImplementedError

    @hook(_ORDERING, "Ordering", added={"interprocess": "1.1"})
    def create_event(self, index: int, timing: bool, interprocess: bool) -> Event:
        """A new event; with ``timing`` it has ``elapsed_time(end) -> float`` in milliseconds.

        The time is negative, or an error, where ``end`` was reached first. With ``interprocess`` it can be
        exported; some runtimes then refuse ``timing``.
        """
        raise NotImplementedError

    @hook(_RELEASING, "Ordering", since="1.1")
    def submit_work(self, index: int) -> None:
        """Send off work that a lazy device has only recorded so far, and do not wait for it."""
        raise NotImplementedError

    @hook(_OBSERVING, "Ordering")
    def is_capturing(self, index: int) -> bool:
        """Whether the current stream is capturing a graph.

        Never raises for a device that exists, not even before initialisation.
        """
        raise NotImplementedError

    @hook(_ORDERING, "Ordering", added={"pool": "1.1"})
    def create_graph(self, index: int, pool: object | None) -> DeviceGraph:
        """A new, empty graph.

        ``pool`` comes from `graph_pool` of the same device: captures that share one keep their memory
        in it, and are replayed in the order of their capture, or one at a time. ``None``: the graph has its own.
        """
        raise NotImplementedError

    @hook(_ORDERING, "Ordering", since="1.1")
    def graph_pool(self, index: int) -> object:
        """A new pool for the memory of captures on the device; it goes back with the last graph that uses it.

        Whether the pool itself is still held makes no difference.
        """
        raise NotImplementedError

    # -- Releasing --------------------------------------------------------------------------------------------

    @hook(_RELEASING, "Releasing")
    def empty_cache(self) -> None:
        """Hand unused allocator blocks of every device of this process back to the driver.

        Synchronises. Legal with live tensors, twice in a row, and before the first allocation (it then does
        nothing and initialises nothing). A private pool that somebody holds may keep its own. Takes no index:
        no vendor's function takes one.
        """
        raise NotImplementedError

    @hook(_RELEASING, "Releasing")
    def empty_host_cache(self) -> None:
        """Hand unused pinned host memory back to the operating system."""
        raise NotImplementedError

    @hook(_RELEASING, "Releasing")
    def collect_ipc(self) -> None:
        """Release memory that other processes have finished using."""
        raise NotImplementedError

    # -- Observing --------------------------------------------------------------------------------------------

    @hook(_OBSERVING, "Observing")
    def memory_stats(self, index: int) -> MemoryStats:
        """This process's allocator on the device. Initialises nothing, empties nothing, does not synchronise.

        Before initialisation, or in a forked child that cannot use the device, every number is ``None`` and
        ``state`` says why. For a device that was not used while another one was, either that or zeros.
        Otherwise every allocation and release before the call is counted.
        """
        raise NotImplementedError

    @hook(_OBSERVING, "Observing")
    def memory_info(self, index: int) -> MemoryInfo:
        """The driver's free and total bytes, all processes included. May initialise.

        Asked anew at each call. Where the driver counts late, what was just allocated or released need not show
        yet; within one second it does.
        """
        raise NotImplementedError

    @hook(_OBSERVING, "Observing")
    def process_memory(self, index: int) -> Sequence[ProcessMemory] | None:
        """Who holds memory on the device, by the vendor's management library; ``None`` if it cannot be asked."""
        raise NotImplementedError

    @hook(_OBSERVING, "Observing")
    def host_memory_stats(self) -> HostMemoryStats:
        """The backend's cache of pinned host memory. What was registered is not in it.

        Before initialisation, or in a forked child that cannot use the device, the numbers are ``None`` or 0.
        """
        raise NotImplementedError

    @hook(_OBSERVING, "Observing")
    def memory_snapshot(self, index: int) -> Sequence[Mapping[str, object]] | None:
        """The allocator's segments and blocks, in the vendor's own form; ``None`` if it cannot be seen.

        A forked child that cannot use the device cannot see its parent's allocator. Before initialisation there
        are none.
        """
        raise NotImplementedError

    @hook(_RELEASING, "Observing")
    def reset_peak_memory_stats(self, index: int) -> None:
        """Make every peak equal to its current value. Before initialisation it does nothing.

        Nothing else does: peaks outlast `empty_cache` and `set_memory_fraction`.
        """
        raise NotImplementedError

    @hook(_OBSERVING, "Observing", since="1.1")
    def telemetry(self, index: int) -> Telemetry:
        """Temperature, power, utilisation and clocks, as the vendor sampled them last. Initialises nothing."""
        raise NotImplementedError

    # -- Limits and pools -------------------------------------------------------------------------------------

    @hook(_ORDERING, "Limits and pools")
    def set_memory_fraction(self, index: int, fraction: float) -> None:
        """Limit this process to a share of the device's total; beyond it, out of memory.

        ``fraction`` is a float, 0.0 to 1.0; raises for others and for NaN. All that the allocator has reserved
        counts, its cache included. A limit below that takes nothing back. It holds until another one is set,
        whatever is emptied.
        """
        raise NotImplementedError

    @hook(_ORDERING, "Limits and pools")
    def memory_pool(self, index: int) -> MemoryPool:
        """A new private allocator pool. Its memory goes back when nothing is left in it and nobody holds it."""
        raise NotImplementedError

    @hook(_OBSERVING, "Limits and pools", since="1.1")
    def allocator_settings(self) -> Sequence[AllocatorSetting] | None:
        """Every setting of the allocator with its value; ``None`` if they cannot be seen. Initialises nothing."""
        raise NotImplementedError

    @hook(_ORDERING, "Limits and pools", since="1.1")
    def set_allocator_setting(self, name: str, value: str) -> None:
        """Change one setting of the allocator for this process, as in ``("max_split_size_mb", "128")``.

        `allocator_settings` shows it at once. Raises ValueError for a setting that does not exist or cannot be
        changed any more, and for a value that cannot be read, or only in part.
        """
        raise NotImplementedError

    # -- Failure ----------------------------------------------------------------------------------------------

    @hook(_OBSERVING, "Failure")
    def classify_error(self, error: BaseException) -> ErrorKind | None:
        """What ``error`` means on this backend; ``None`` if it is none of ours. Never raises.

        Judged by its type first, then by its code, then by its message. Where these say nothing, what it came from
        is judged in the same way: its ``__cause__`` where it has one, otherwise its ``__context__`` unless
        ``raise ... from None`` hides that. A lost device anywhere among them may come before all else. No class of
        exception, however odd, and no chain, however long or circular, makes it raise.
        """
        raise NotImplementedError

    # -- Host side --------------------------------------------------------------------------------------------

    @hook(_ORDERING, "Host side")
    def pin_memory(self, tensor: torch.Tensor) -> torch.Tensor:
        """A page-locked copy of a host tensor (the same memory if it is page-locked already).

        The copy has the tensor's elements, shape and dtype, whatever part of a storage it was; strides
        may differ, and without elements there is nothing to lock. Raises for a tensor that is not on the host.
        """
        raise NotImplementedError

    @hook(_OBSERVING, "Host side", since="1.1")
    def is_pinned(self, tensor: torch.Tensor) -> bool:
        """Whether a host tensor's memory is page-locked for this backend's devices. Initialises nothing.

        It is not where its first or its last byte is not; what lies between need not be looked at. For a tensor
        without elements, either answer is allowed.
        """
        raise NotImplementedError

    @hook(_ORDERING, "Host side", since="1.1")
    def register_host_memory(self, tensor: torch.Tensor) -> None:
        """Page-lock the memory of a contiguous host tensor where it is, until it is unregistered.

        What is locked are the bytes of its elements, and at most the pages on which they are. Raises for memory of
        which any part is registered or page-locked already, for a tensor without elements, and for other tensors.
        """
        raise NotImplementedError

    @hook(_ORDERING, "Host side", since="1.1")
    def unregister_host_memory(self, tensor: torch.Tensor) -> None:
        """Undo `register_host_memory`, before the tensor goes.

        Another tensor of the same address and size will do. Raises for any other memory, and for a part of it.
        """
        raise NotImplementedError

    @hook(_OBSERVING, "Host side")
    def copies_overlap(self, index: int) -> bool:
        """Whether copies from and to pinned memory really run beside computation."""
        raise NotImplementedError

    # -- Random -----------------------------------------------------------------------------------------------

    @hook(_ORDERING, "Random")
    def manual_seed(self, index: int, seed: int) -> None:
        """Seed the device's default generator with 0 to 2**63 - 1: from the same seed the same numbers follow.

        Other seeds should give others; some generators take 32 bits of a seed, as torch's own on the host does.
        No other generator is seeded: not another device's, the host's or Python's.
        """
        raise NotImplementedError

    @hook(_ORDERING, "Random")
    def get_rng_state(self, index: int) -> torch.Tensor:
        """The default generator's state, as a uint8 host tensor."""
        raise NotImplementedError

    @hook(_ORDERING, "Random")
    def set_rng_state(self, index: int, state: torch.Tensor) -> None:
        """Restore what `get_rng_state` returned, or a copy of it.

        A view is as good, such as a row of several states that are kept in one tensor.
        """
        raise NotImplementedError

    # -- Processes --------------------------------------------------------------------------------------------

    @hook(_OBSERVING, "Processes")
    def collective_backend(self) -> str:
        """Name to give ``torch.distributed.init_process_group``."""
        raise NotImplementedError

    @hook(_OBSERVING, "Processes")
    def visible_devices_variable(self) -> str | None:
        """Environment variable that limits the devices a process sees; ``None`` if there is none."""
        raise NotImplementedError

    @hook(_OBSERVING, "Processes")
    def is_bad_fork(self) -> bool:
        """Whether this process was forked after its parent initialised the device, and cannot use it.

        So are its own forked children. Once true, it stays true, whatever is tried.
        """
        raise NotImplementedError

    @hook(_ORDERING, "Processes")
    def export_ipc(self, tensor: torch.Tensor) -> object:
        """A picklable handle by which another process can map the tensor's memory, wherever that begins.

        For a contiguous tensor with elements, which the exporter keeps until it was imported; its process outlives
        the imported tensor. A handle is good for one import. A tensor may be exported again, and several handles
        may be under way. Who exports waits first for what is still to write there (`synchronize`, or an event that
        is sent along).
        """
        raise NotImplementedError

    @hook(_ORDERING, "Processes")
    def import_ipc(self, handle: object) -> torch.Tensor:
        """The tensor behind a handle from `export_ipc` of another process."""
        raise NotImplementedError

    @hook(_ORDERING, "Processes", since="1.1")
    def export_event(self, event: Event) -> object:
        """A picklable handle by which another process can wait for an event made with ``interprocess``."""
        raise NotImplementedError

    @hook(_ORDERING, "Processes", since="1.1")
    def import_event(self, index: int, handle: object) -> Event:
        """The event behind a handle from `export_event` of another process, for use on the device."""
        raise NotImplementedError

    # -- Tools ------------------------------------------------------------------------------------------------

    @hook(_OBSERVING, "Tools")
    def profiler_activity(self) -> torch.profiler.ProfilerActivity | None:
        """The activity that makes ``torch.profiler`` record this device."""
        raise NotImplementedError

    @hook(_ORDERING, "Tools")
    def record_memory_history(self, index: int, enabled: bool) -> None:
        """Start or stop recording allocations for `memory_snapshot`; some vendors do so on all devices at once.

        To stop what was not started does nothing, and initialises nothing. What was recorded may be forgotten.
        """
        raise NotImplementedError


HOOKS: Mapping[str, HookSpec] = collect(BackendSpec)
"""Every hook by name, in the order of the reference."""
