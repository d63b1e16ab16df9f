"""Streams and events of torch's own, for a device without a plugin whose module has none."""

from __future__ import annotations

import pytest
import torch

from devicekit.registry.validation import implemented_hooks
from devicekit.torchlike import GenericBackend
from tests.doubles.partial import Accelerator, install_acme


class Queues:
    """torch's own streams and events over a backend that has them; `inert`, over one that has none."""

    def __init__(self, inert: bool) -> None:
        self.inert = inert
        self.current: dict[int, object] = {}
        self.index = 0
        self.synchronized = 0

    def install(self, patch: pytest.MonkeyPatch, shared: Accelerator) -> None:
        outer = self

        class Stream:
            made = 0

            def __init__(self, device: torch.device, priority: int = 0) -> None:
                Stream.made += 1
                self.device, self.priority = device, priority
                self.stream_id = 0 if outer.inert else Stream.made

            def __eq__(self, other: object) -> bool:
                return isinstance(other, Stream) and (self.device, self.stream_id) == (
                    other.device,
                    other.stream_id,
                )

            def __hash__(self) -> int:
                return self.stream_id

        class Event:
            def __init__(self, device: object, enable_timing: bool = False) -> None:
                self.timing, self.recorded = enable_timing, False

            def record(self, stream: object = None) -> None:
                self.recorded = True

            def synchronize(self) -> None:
                if outer.inert:
                    raise RuntimeError("Backend doesn't support synchronizing events.")
                outer.synchronized += 1

            def query(self) -> bool:
                return self.recorded

        def current_stream(index: int) -> object:
            return self.current.setdefault(index, Stream(torch.device("cpu", index)))

        def set_stream(stream: Stream) -> None:
            self.index = stream.device.index
            self.current[self.index] = stream

        def set_device_index(index: int) -> None:
            self.index = index

        patch.setattr(torch, "Stream", Stream)
        patch.setattr(torch, "Event", Event)
        real = torch.device
        # torch has no such type: the streams say where they are by the host's.
        patch.setattr(torch, "device", lambda kind, index=0: real("cpu", index))
        for function in (current_stream, set_stream, set_device_index):
            patch.setattr(torch.accelerator, function.__name__, function, raising=False)
        patch.setattr(torch.accelerator, "current_device_index", lambda: self.index, raising=False)


STREAM_HOOKS = {"create_stream", "use_stream", "current_stream", "set_current_stream", "create_event"}


def test_torchs_own_streams_and_events_serve_where_they_do_something(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = install_acme(monkeypatch, Accelerator("acme"))
    queues = Queues(inert=False)
    queues.install(monkeypatch, shared)
    backend = GenericBackend("acme")
    assert implemented_hooks(backend) >= STREAM_HOOKS
    assert "streams" in backend.findings.claims
    before, side = backend.current_stream(1), backend.create_stream(1, -1)
    queues.index = 0
    with backend.use_stream(side):
        assert backend.current_stream(1) == side != before
    assert (backend.current_stream(1), queues.index) == (before, 0)
    backend.set_current_stream(side)
    assert (backend.current_stream(1), queues.index) == (side, 0)


def test_torchs_own_streams_and_events_that_do_nothing_are_left_out(monkeypatch: pytest.MonkeyPatch) -> None:
    shared = install_acme(monkeypatch, Accelerator("acme"))
    Queues(inert=True).install(monkeypatch, shared)
    backend = GenericBackend("acme")
    assert not STREAM_HOOKS & implemented_hooks(backend)
    assert not {"streams", "events"} & backend.findings.claims
