"""Work is pending until its end, streams keep their order, and events tell when."""

from __future__ import annotations

import threading

import pytest
import torch

from devicekit.contract.handles import Event, Stream
from devicekit.testing import SimConfig, Simulator
from devicekit.testing.streams import SimEvent, SimStream
from tests.threads import in_threads

pytestmark = pytest.mark.usefixtures("machine")


def test_work_is_pending_until_the_clock_reaches_its_end(machine: Simulator) -> None:
    stream = machine.create_stream()
    done: list[float] = []
    operation = stream.submit("work", 2.0, completion=lambda: done.append(machine.clock.now()))
    machine.clock.advance(1.999)
    assert not stream.query()
    assert (done, operation.done) == ([], False)
    machine.clock.advance(0.001)
    assert (done, operation.done) == ([2.0], True)
    assert stream.query()


def test_synchronizing_waits_and_takes_the_time_that_the_work_takes(machine: Simulator) -> None:
    stream = machine.create_stream()
    operation = stream.submit("work", 0.25)
    stream.synchronize()
    assert operation.done
    assert machine.clock.now() == 0.25


def test_a_device_waits_for_all_of_its_streams_and_no_other_device(machine: Simulator) -> None:
    here = [machine.create_stream(0).submit("work", seconds) for seconds in (1.0, 3.0)]
    elsewhere = machine.create_stream(1).submit("work", 9.0)
    machine.synchronize(0)
    assert all(operation.done for operation in here)
    assert not elsewhere.done


def test_work_in_one_stream_runs_in_turn_and_in_two_streams_side_by_side(machine: Simulator) -> None:
    first, second = machine.create_stream(), machine.create_stream()
    assert [first.submit("a", 1.0).end, first.submit("b", 1.0).end, second.submit("c", 1.5).end] == [
        1.0,
        2.0,
        1.5,
    ]


def test_polling_takes_time_so_that_a_loop_that_polls_ends(machine: Simulator) -> None:
    stream = machine.create_stream()
    stream.submit("work", 1e-4)
    polls = 0
    while not stream.query():
        polls += 1
        assert polls < 1000
    assert polls >= 99


def test_an_event_is_done_when_what_was_before_it_is(machine: Simulator) -> None:
    stream = machine.create_stream()
    stream.submit("before", 1.0)
    event = stream.record_event()
    stream.submit("after", 5.0)
    assert not event.query()
    event.synchronize()
    assert event.query()
    assert machine.clock.now() == pytest.approx(1.0, abs=1e-3)
    assert not stream.query()


def test_an_event_that_was_never_recorded_counts_as_done() -> None:
    event = SimEvent()
    event.synchronize()
    assert event.query()


def test_elapsed_time_is_milliseconds_between_marks(machine: Simulator) -> None:
    start, end = SimEvent(enable_timing=True), SimEvent(enable_timing=True)
    start.record()
    torch.sim.busy(0.125)
    end.record()
    with pytest.raises(RuntimeError, match="not been reached"):
        start.elapsed_time(end)
    end.synchronize()
    assert start.elapsed_time(end) == 125.0
    assert end.elapsed_time(start) == -125.0


def test_elapsed_time_needs_events_that_keep_time_and_were_recorded() -> None:
    timed = SimEvent(enable_timing=True)
    timed.record()
    with pytest.raises(ValueError, match="enable_timing"):
        timed.elapsed_time(SimEvent())
    with pytest.raises(ValueError, match="recorded"):
        timed.elapsed_time(SimEvent(enable_timing=True))


@pytest.mark.parametrize("how", ["event", "stream"])
def test_waiting_in_a_stream_orders_its_later_work_without_holding_the_host(
    machine: Simulator, how: str
) -> None:
    producer, consumer = machine.create_stream(), machine.create_stream()
    order: list[str] = []
    producer.submit("produce", 3.0, completion=lambda: order.append("produced"))
    if how == "event":
        consumer.wait_event(producer.record_event())
    else:
        consumer.wait_stream(producer)
    consumer.submit("consume", 1.0, completion=lambda: order.append("consumed"))
    assert machine.clock.now() == 0.0
    consumer.synchronize()
    assert order == ["produced", "consumed"]
    assert machine.clock.now() == 4.0


def test_a_device_whose_stream_waits_for_another_device_waits_with_it(machine: Simulator) -> None:
    producer, consumer = machine.create_stream(0), machine.create_stream(1)
    producer.submit("produce", 3.0)
    consumer.wait_stream(producer)
    machine.synchronize(1)
    assert machine.clock.now() == 3.0


def test_an_event_that_is_recorded_again_marks_the_later_place(machine: Simulator) -> None:
    stream = machine.create_stream()
    event = stream.record_event()
    stream.submit("work", 1.0)
    event.record(stream)
    assert not event.query()


def test_the_current_stream_is_each_threads_own_on_each_device(machine: Simulator) -> None:
    mine = torch.sim.Stream(1)
    seen: list[SimStream] = []
    with torch.sim.stream(mine):
        assert torch.sim.current_stream(1) is mine
        assert torch.sim.current_stream(0) is torch.sim.default_stream(0)
        thread = threading.Thread(target=lambda: seen.append(torch.sim.current_stream(1)))
        thread.start()
        thread.join()
    assert seen == [torch.sim.default_stream(1)]
    assert torch.sim.current_stream(1) is torch.sim.default_stream(1)


def test_a_stream_block_makes_its_device_current_and_restores_both_after_an_error() -> None:
    def fail_inside() -> None:
        with torch.sim.stream(torch.sim.Stream(1)):
            assert torch.sim.current_device() == 1
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert torch.sim.current_device() == 0
    assert torch.sim.current_stream(1) is torch.sim.default_stream(1)
    with torch.sim.stream(None):
        assert torch.sim.current_device() == 0


def test_streams_and_events_are_what_the_contract_asks_for(machine: Simulator) -> None:
    assert isinstance(machine.create_stream(), Stream)
    assert isinstance(SimEvent(), Event)


def test_another_makers_stream_is_refused(machine: Simulator) -> None:
    with pytest.raises(TypeError, match=r"torch\.sim"):
        machine.create_stream().wait_stream(object())  # type: ignore[arg-type]  # the point


def test_a_stream_of_another_machine_cannot_become_current(machine: Simulator) -> None:
    with pytest.raises(ValueError, match="another"):
        machine.set_stream(Simulator().create_stream())


def test_a_stream_works_from_any_thread(machine: Simulator) -> None:
    stream = machine.create_stream()
    operation = stream.submit("work", 1.0)
    thread = threading.Thread(target=stream.synchronize)
    thread.start()
    thread.join()
    assert operation.done


@pytest.mark.parametrize("machine", [SimConfig.synchronous()], indirect=True)
def test_a_synchronous_machine_never_has_work_pending(machine: Simulator) -> None:
    stream = torch.sim.Stream()
    torch.sim.busy(2.0, stream)
    assert stream.query()
    assert machine.clock.now() == 2.0


def test_threads_may_submit_and_wait_at_once(machine: Simulator) -> None:
    streams = [machine.create_stream() for _ in range(2)]
    done: list[int] = []

    def work() -> None:
        for turn in range(200):
            stream = streams[turn % 2]
            stream.wait_stream(streams[1 - turn % 2])
            stream.submit("work", 1e-6, completion=lambda turn=turn: done.append(turn))
            stream.synchronize()

    in_threads(4, work)
    assert sorted(done) == sorted(list(range(200)) * 4)


def test_kernels_take_time_on_the_stream_they_are_launched_in(machine: Simulator) -> None:
    x = torch.ones(4, device="sim")
    torch.sim.synchronize()
    side = torch.sim.Stream()
    with torch.sim.stream(side):
        x + x
    assert not side.query()
    assert torch.sim.default_stream().query()
