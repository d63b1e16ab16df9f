"""A recorder collects samples, verbs and release points, and changes nothing; recordings can be read back."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from devicekit import Device
from devicekit.contract.errors import ConfigurationError, HookError
from devicekit.observe import Mark, MarkKind, Recorder, Timeline
from devicekit.release import ReleasePoint, ReleasePoints
from devicekit.testing import MIB, Fault, MockClock, Raise, Simulator


def test_samples_say_what_the_device_says(sim: Device) -> None:
    clock = MockClock()
    recorder = Recorder(sim, clock=clock)
    recorder.sample()
    held = torch.empty(30 * MIB, dtype=torch.uint8, device=sim.torch_device)
    clock.advance(2.0)
    sample = recorder.sample()
    first, second = recorder.timeline.samples
    assert (first.allocated, first.reserved, first.free) == (None, None, None)  # asking might initialise
    assert second is sample
    assert (second.at - first.at, second.allocated, second.reserved) == (2.0, held.nbytes, 30 * MIB)
    assert second.free == sim.memory_info().free
    assert recorder.timeline.total == sim.memory_info().total


def test_a_sample_initialises_nothing(sim: Device) -> None:
    with Recorder(sim) as recorder:
        recorder.sample()
    assert not torch.sim.is_initialized()


def test_release_points_and_verbs_are_marked_with_what_they_gave(sim: Device) -> None:
    points = ReleasePoints(sim, clock=MockClock())
    torch.empty(30 * MIB, dtype=torch.uint8, device=sim.torch_device)
    points.reach(ReleasePoint.FLUSH)  # before the recording
    torch.empty(40 * MIB, dtype=torch.uint8, device=sim.torch_device)
    with Recorder(sim, releases=points) as recorder:
        points.reach(ReleasePoint.WEIGHT_UPDATE)  # not requested: nothing happens
        points.reach(ReleasePoint.CONTINUE)
        recorder.mark("new weights")
        with recorder.verb("rebuild"):
            held = torch.empty(50 * MIB, dtype=torch.uint8, device=sim.torch_device)
    marks = [(mark.kind, mark.label, mark.released) for mark in recorder.timeline.marks]
    assert sorted(marks) == [
        (MarkKind.NOTE, "new weights", None),
        (MarkKind.RELEASE, "continue", 40 * MIB),
        (MarkKind.VERB, "empty_cache", 40 * MIB),
        (MarkKind.VERB, "rebuild", -held.nbytes),
    ]
    reserved = [sample.reserved for sample in recorder.timeline.samples]
    assert reserved == [40 * MIB, 40 * MIB, 0, 0, 50 * MIB, 50 * MIB]


def test_after_the_block_nothing_is_marked(sim: Device) -> None:
    with Recorder(sim) as recorder:
        pass
    sim.empty_cache()
    assert recorder.timeline.marks == []


def test_a_thread_samples_by_itself(cpu: Device, tmp_path: Path) -> None:
    enough = 5
    with Recorder(cpu, interval=0.001) as recorder:
        while len(recorder.timeline.samples) < enough:
            pass
    assert len(recorder.timeline.samples) >= enough + 1
    assert all(sample.free for sample in recorder.timeline.samples)
    assert all(sample.allocated is None for sample in recorder.timeline.samples)


def test_an_error_of_the_sampling_thread_is_raised_at_the_end(sim: Device, machine: Simulator) -> None:
    torch.empty(1, device=sim.torch_device)
    broken = Fault("memory_stats", Raise(lambda: ValueError("broken")), times=None)

    def record() -> None:
        with Recorder(sim, interval=0.001), machine.inject(broken) as script:
            while not script.hits:
                pass

    with pytest.raises(HookError, match="broken"):
        record()


def test_a_recording_is_written_as_it_goes_and_reads_back(sim: Device, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    with Recorder(sim, path=path) as recorder:
        torch.empty(MIB, dtype=torch.uint8, device=sim.torch_device)
        sim.empty_cache()
        assert Timeline.read(path) == recorder.timeline  # before the end
    assert Timeline.read(path) == recorder.timeline
    again = tmp_path / "again.jsonl"
    recorder.timeline.write(again)
    assert Timeline.read(again).marks == recorder.timeline.marks


def test_an_unfinished_last_line_is_left_out(cpu: Device, tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    Timeline("npu:0", marks=[Mark(1.0, MarkKind.NOTE, "here")]).write(path)
    with path.open("a") as file:
        file.write('{"at": 2.0, "ki')
    assert [mark.label for mark in Timeline.read(path).marks] == ["here"]


@pytest.mark.parametrize("text", ["", "{}\n", "[]\n", '{"timeline": "npu:0"}\n{"at": 1}\n'])
def test_another_file_is_refused(text: str, tmp_path: Path) -> None:
    path = tmp_path / "other.jsonl"
    path.write_text(text)
    with pytest.raises(ConfigurationError, match=r"other\.jsonl"):
        Timeline.read(path)


def test_the_older_half_goes_when_there_are_too_many(cpu: Device) -> None:
    recorder = Recorder(cpu, keep=10)
    for _ in range(11):
        latest = recorder.sample()
    assert len(recorder.timeline.samples) == 6
    assert recorder.timeline.samples[-1] is latest


def test_an_interval_must_be_positive(cpu: Device) -> None:
    with pytest.raises(ConfigurationError, match="interval"):
        Recorder(cpu, interval=0)
