"""A backend with every hook of device contract 1.1, each answering with what it was called with."""

from __future__ import annotations

import contextlib

import torch

import devicekit
import devicekit.contract


class Backend:
    def __init__(self):
        self.calls = []

    @devicekit.hookimpl
    def is_available(self):
        self.calls.append(("is_available",))
        return True

    @devicekit.hookimpl
    def device_count(self):
        self.calls.append(("device_count",))
        return 1

    @devicekit.hookimpl
    def current_index(self):
        self.calls.append(("current_index",))
        return 0

    @devicekit.hookimpl
    def set_index(self, index):
        self.calls.append(("set_index", index))
        return

    @devicekit.hookimpl
    def device_properties(self, index):
        self.calls.append(("device_properties", index))
        return devicekit.DeviceProperties("frozen")

    @devicekit.hookimpl
    def synchronize(self, index):
        self.calls.append(("synchronize", index))
        return

    @devicekit.hookimpl
    def current_stream(self, index):
        self.calls.append(("current_stream", index))
        return object()

    @devicekit.hookimpl
    def create_stream(self, index, priority):
        self.calls.append(("create_stream", index, priority))
        return object()

    @devicekit.hookimpl
    def use_stream(self, stream):
        self.calls.append(("use_stream", stream))
        return contextlib.nullcontext()

    @devicekit.hookimpl
    def create_event(self, index, timing, interprocess):
        self.calls.append(("create_event", index, timing, interprocess))
        return object()

    @devicekit.hookimpl
    def is_capturing(self, index):
        self.calls.append(("is_capturing", index))
        return True

    @devicekit.hookimpl
    def create_graph(self, index, pool):
        self.calls.append(("create_graph", index, pool))
        return object()

    @devicekit.hookimpl
    def empty_cache(self):
        self.calls.append(("empty_cache",))
        return

    @devicekit.hookimpl
    def empty_host_cache(self):
        self.calls.append(("empty_host_cache",))
        return

    @devicekit.hookimpl
    def collect_ipc(self):
        self.calls.append(("collect_ipc",))
        return

    @devicekit.hookimpl
    def memory_stats(self, index):
        self.calls.append(("memory_stats", index))
        return devicekit.MemoryStats(devicekit.AllocatorState.OK, allocated=1, active=2, reserved=4)

    @devicekit.hookimpl
    def memory_info(self, index):
        self.calls.append(("memory_info", index))
        return devicekit.MemoryInfo(8, 16, "estimate")

    @devicekit.hookimpl
    def process_memory(self, index):
        self.calls.append(("process_memory", index))
        return [devicekit.ProcessMemory(1, 2)]

    @devicekit.hookimpl
    def host_memory_stats(self):
        self.calls.append(("host_memory_stats",))
        return devicekit.HostMemoryStats(1, 2)

    @devicekit.hookimpl
    def memory_snapshot(self, index):
        self.calls.append(("memory_snapshot", index))
        return [{}]

    @devicekit.hookimpl
    def reset_peak_memory_stats(self, index):
        self.calls.append(("reset_peak_memory_stats", index))
        return

    @devicekit.hookimpl
    def set_memory_fraction(self, index, fraction):
        self.calls.append(("set_memory_fraction", index, fraction))
        return

    @devicekit.hookimpl
    def memory_pool(self, index):
        self.calls.append(("memory_pool", index))
        return object()

    @devicekit.hookimpl
    def classify_error(self, error):
        self.calls.append(("classify_error", error))
        return

    @devicekit.hookimpl
    def pin_memory(self, tensor):
        self.calls.append(("pin_memory", tensor))
        return torch.zeros(1)

    @devicekit.hookimpl
    def copies_overlap(self, index):
        self.calls.append(("copies_overlap", index))
        return True

    @devicekit.hookimpl
    def manual_seed(self, index, seed):
        self.calls.append(("manual_seed", index, seed))
        return

    @devicekit.hookimpl
    def get_rng_state(self, index):
        self.calls.append(("get_rng_state", index))
        return torch.zeros(1)

    @devicekit.hookimpl
    def set_rng_state(self, index, state):
        self.calls.append(("set_rng_state", index, state))
        return

    @devicekit.hookimpl
    def collective_backend(self):
        self.calls.append(("collective_backend",))
        return "gloo"

    @devicekit.hookimpl
    def visible_devices_variable(self):
        self.calls.append(("visible_devices_variable",))
        return "FROZEN_VISIBLE_DEVICES"

    @devicekit.hookimpl
    def is_bad_fork(self):
        self.calls.append(("is_bad_fork",))
        return True

    @devicekit.hookimpl
    def export_ipc(self, tensor):
        self.calls.append(("export_ipc", tensor))
        return object()

    @devicekit.hookimpl
    def import_ipc(self, handle):
        self.calls.append(("import_ipc", handle))
        return torch.zeros(1)

    @devicekit.hookimpl
    def profiler_activity(self):
        self.calls.append(("profiler_activity",))
        return torch.profiler.ProfilerActivity.CPU

    @devicekit.hookimpl
    def record_memory_history(self, index, enabled):
        self.calls.append(("record_memory_history", index, enabled))
        return

    @devicekit.hookimpl
    def supported_dtypes(self, index):
        self.calls.append(
            (
                "supported_dtypes",
                index,
            )
        )
        return frozenset({torch.float32})

    @devicekit.hookimpl
    def can_access_peer(self, index, peer):
        self.calls.append(
            (
                "can_access_peer",
                index,
                peer,
            )
        )
        return True

    @devicekit.hookimpl
    def set_current_stream(self, stream):
        self.calls.append(
            (
                "set_current_stream",
                stream,
            )
        )
        return

    @devicekit.hookimpl
    def default_stream(self, index):
        self.calls.append(
            (
                "default_stream",
                index,
            )
        )
        return object()

    @devicekit.hookimpl
    def native_handle(self, stream):
        self.calls.append(
            (
                "native_handle",
                stream,
            )
        )
        return 7

    @devicekit.hookimpl
    def priority_range(self, index):
        self.calls.append(
            (
                "priority_range",
                index,
            )
        )
        return (0, -1)

    @devicekit.hookimpl
    def submit_work(self, index):
        self.calls.append(
            (
                "submit_work",
                index,
            )
        )
        return

    @devicekit.hookimpl
    def graph_pool(self, index):
        self.calls.append(
            (
                "graph_pool",
                index,
            )
        )
        return object()

    @devicekit.hookimpl
    def telemetry(self, index):
        self.calls.append(
            (
                "telemetry",
                index,
            )
        )
        return devicekit.contract.Telemetry(41.0)

    @devicekit.hookimpl
    def allocator_settings(self):
        self.calls.append(("allocator_settings",))
        return [devicekit.contract.AllocatorSetting("limit", "1", True)]

    @devicekit.hookimpl
    def set_allocator_setting(self, name, value):
        self.calls.append(
            (
                "set_allocator_setting",
                name,
                value,
            )
        )
        return

    @devicekit.hookimpl
    def is_pinned(self, tensor):
        self.calls.append(
            (
                "is_pinned",
                tensor,
            )
        )
        return True

    @devicekit.hookimpl
    def register_host_memory(self, tensor):
        self.calls.append(
            (
                "register_host_memory",
                tensor,
            )
        )
        return

    @devicekit.hookimpl
    def unregister_host_memory(self, tensor):
        self.calls.append(
            (
                "unregister_host_memory",
                tensor,
            )
        )
        return

    @devicekit.hookimpl
    def export_event(self, event):
        self.calls.append(
            (
                "export_event",
                event,
            )
        )
        return object()

    @devicekit.hookimpl
    def import_event(self, index, handle):
        self.calls.append(
            (
                "import_event",
                index,
                handle,
            )
        )
        return object()
