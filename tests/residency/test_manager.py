"""A component is on the device while it is used, and afterwards where its mode and its declared uses say."""

from __future__ import annotations

import gc
import weakref

import pytest
import torch
from torch import nn

from devicekit.contract.errors import ConfigurationError
from devicekit.device import Device
from devicekit.release import ReleasePoint, ReleasePoints
from devicekit.residency import (
    ComponentOffload,
    ComponentUse,
    PrefetchOutcome,
    RequestReport,
    Residency,
    ResidencyError,
    Resident,
    SnapshotOffload,
    Stage,
    UndeclaredComponent,
    UnknownComponent,
)
from devicekit.testing import KIB, MIB, Fault, OutOfMemory, Raise, Simulator

SIZE = 64 * KIB
Parts = dict[str, nn.Module]


def pipeline(*uses: ComponentUse | str) -> list[Stage]:
    """One stage for each use, named 0, 1, 2…"""
    declared = [ComponentUse(use) if isinstance(use, str) else use for use in uses]
    return [Stage(str(number), (use,)) for number, use in enumerate(declared)]


@pytest.fixture
def residency(parts: Parts, sim_device: Device) -> Residency:
    return Residency(parts, sim_device, {"all": ComponentOffload()}, prefetch_margin=0)


def here(residency: Residency, *names: str) -> list[int]:
    return [residency.on_device(name) for name in names]


def test_a_single_use_is_ready_at_entry_and_gone_at_exit(residency: Residency, parts: Parts) -> None:
    with residency.request(pipeline("encoder")) as report:
        assert here(residency, "encoder") == [0]
        with residency.stage("0"):
            assert here(residency, "encoder") == [SIZE]
            x = torch.ones(1, 128, device=residency.device.torch_device)
            assert parts["encoder"](x).device == residency.device.torch_device
        assert here(residency, "encoder") == [0]
    assert (report.bytes_in, report.bytes_out) == (SIZE, SIZE)
    assert [release.stage for release in report.releases] == ["0"]


def test_a_use_that_does_not_start_at_entry_is_started_by_its_stage(residency: Residency) -> None:
    use = ComponentUse("encoder", start_at_stage_entry=False)
    with residency.request(pipeline(use)), residency.stage("0"):
        assert here(residency, "encoder") == [0]
        with residency.use("encoder"):
            assert here(residency, "encoder") == [SIZE]
        assert here(residency, "encoder") == [0]


def test_adjacent_stages_with_the_same_use_share_one_residency(residency: Residency) -> None:
    with residency.request(pipeline("encoder", "encoder")) as report:
        with residency.stage("0"):
            pass
        assert here(residency, "encoder") == [SIZE]
        with residency.stage("1"):
            assert here(residency, "encoder") == [SIZE]
        assert here(residency, "encoder") == [0]
    assert report.bytes_in == report.bytes_out == SIZE


def test_another_phase_of_the_same_component_keeps_it_where_it_is(residency: Residency) -> None:
    uses = ComponentUse("encoder", "positive"), ComponentUse("encoder", "negative")
    with residency.request(pipeline(*uses)) as report:
        for name in ("0", "1"):
            with residency.stage(name):
                assert here(residency, "encoder") == [SIZE]
    assert report.bytes_in == SIZE
    assert [release.phase for release in report.releases] == ["negative"]


def test_a_different_component_ends_the_use_of_the_one_before(residency: Residency) -> None:
    stage = Stage("both", (ComponentUse("encoder"), ComponentUse("decoder")))
    with residency.request([stage]), residency.stage("both"):
        residency.begin_use("encoder")
        residency.begin_use("decoder")
        assert here(residency, "encoder", "decoder") == [0, SIZE]


def test_a_stage_of_several_components_begins_and_ends_each_itself(residency: Residency) -> None:
    stage = Stage("both", (ComponentUse("encoder"), ComponentUse("decoder")))
    with residency.request([stage]):
        with residency.stage("both"):
            assert here(residency, "encoder", "decoder") == [0, 0]
            with residency.use("encoder"):
                assert here(residency, "encoder", "decoder") == [SIZE, 0]
            residency.begin_use("decoder")
        assert here(residency, "encoder", "decoder") == [0, 0]  # what was left open ends with the stage


def test_it_is_not_kept_across_the_use_of_another(residency: Residency) -> None:
    kept = ComponentUse("encoder", keep_after_request=True)
    with residency.request(pipeline(kept, "decoder", kept)):
        with residency.stage("0"):
            pass
        with residency.stage("1"):
            assert here(residency, "encoder") == [0]
        with residency.stage("2"):
            pass
    assert here(residency, "encoder") == [SIZE]


def test_a_use_that_is_not_released_lasts_until_the_request_ends(residency: Residency) -> None:
    with residency.request(pipeline(ComponentUse("encoder", release_after_use=False), "decoder")):
        with residency.stage("0"):
            pass
        with residency.stage("1"):
            assert here(residency, "encoder", "decoder") == [SIZE, SIZE]
    assert here(residency, "encoder", "decoder") == [0, 0]


@pytest.mark.parametrize(
    ("warmup", "kept"), [(True, SIZE), (False, 0), ([True, True], SIZE), ([True, False], 0), ([], 0)]
)
def test_what_is_kept_after_a_warmup_is_released_after_a_real_request(
    residency: Residency, warmup: bool | list[bool], kept: int
) -> None:
    stages = pipeline(ComponentUse("encoder", keep_after_warmup=True))
    with residency.request(stages, warmup=warmup) as report, residency.stage("0"):
        pass
    assert report.warmup is bool(kept)
    assert here(residency, "encoder") == [kept]


def test_what_was_kept_is_used_again_without_a_copy(residency: Residency) -> None:
    stages = pipeline(ComponentUse("encoder", keep_after_request=True))
    for expected in (SIZE, 0):
        with residency.request(stages) as report, residency.stage("0"):
            assert here(residency, "encoder") == [SIZE]
        assert report.bytes_in == expected


def test_a_use_that_nobody_declared_is_released_when_the_request_ends(residency: Residency) -> None:
    with residency.request(pipeline("encoder")) as report:
        with residency.stage("0"):
            pass
        residency.begin_use("decoder")
        assert here(residency, "decoder") == [SIZE]
    assert here(residency, "decoder") == [0]
    assert [release.component for release in report.releases] == ["encoder", "decoder"]


def test_a_component_that_would_never_come_back_is_refused(parts: Parts, sim_device: Device) -> None:
    modes = {"encoder": SnapshotOffload(), "transformer": ComponentOffload(), "decoder": Resident()}
    residency = Residency(parts, sim_device, modes)
    with pytest.raises(UndeclaredComponent, match="transformer"):
        residency.begin_request(pipeline("encoder"))
    with residency.request(pipeline("encoder", "transformer")):
        pass


def test_names_that_the_pipeline_does_not_have_are_refused(residency: Residency, parts: Parts) -> None:
    with pytest.raises(UnknownComponent, match="vae, which this pipeline does not have; it has decoder"):
        Residency(parts, residency.device, {"vae": ComponentOffload()})
    with pytest.raises(ConfigurationError, match="vae"):
        residency.begin_request(pipeline("vae"))
    with residency.request(pipeline("encoder")), pytest.raises(UnknownComponent):
        residency.begin_use("vae")


def test_calls_in_the_wrong_order_are_refused(residency: Residency) -> None:
    for call in (
        lambda: residency.begin_use("encoder"),
        lambda: residency.begin_stage("0"),
        residency.finish_request,
    ):
        with pytest.raises(ResidencyError, match="No request"):
            call()
    with residency.request(pipeline("encoder")):
        with pytest.raises(ResidencyError, match="finish it before"):
            residency.begin_request([])
        with pytest.raises(ResidencyError, match="not in use"):
            residency.end_use("encoder")
        with pytest.raises(ResidencyError, match="No stage '7' is left in this request; left are: 0"):
            residency.begin_stage("7")


def test_a_replaced_module_is_treated_afresh(residency: Residency, parts: Parts) -> None:
    stages = pipeline(ComponentUse("encoder", keep_after_request=True))
    with residency.request(stages), residency.stage("0"):
        pass
    old, parts["encoder"] = parts["encoder"], nn.Linear(64, 64, bias=False)
    with residency.request(stages), residency.stage("0"):
        assert here(residency, "encoder") == [16 * KIB]
    assert {parameter.device.type for parameter in old.parameters()} == {"cpu"}


def test_forgetting_drops_every_reference(residency: Residency, parts: Parts, sim_device: Device) -> None:
    stages = pipeline(ComponentUse("encoder", keep_after_request=True))
    with residency.request(stages), residency.stage("0"):
        pass
    seen = weakref.ref(parts.pop("encoder"))
    assert seen() is not None
    residency.forget("encoder")
    gc.collect()
    assert seen() is None
    assert sim_device.memory_stats().allocated == 0


def test_an_error_in_a_stage_releases_and_reaches_the_caller(residency: Residency) -> None:
    stages = pipeline("encoder", "decoder")
    with pytest.raises(ZeroDivisionError), residency.request(stages), residency.stage("0"):
        raise ZeroDivisionError
    assert here(residency, "encoder", "decoder") == [0, 0]
    with residency.request(pipeline("encoder")), residency.stage("0"):
        assert here(residency, "encoder") == [SIZE]


def test_a_component_that_cannot_come_stays_on_the_host(
    sim_machine: Simulator, residency: Residency, parts: Parts
) -> None:
    weights = parts["encoder"].weight.detach().clone()
    with (
        sim_machine.inject(Fault("copy", Raise(lambda: RuntimeError("bus error")))),
        pytest.raises(RuntimeError, match="bus error"),
        residency.request(pipeline("encoder")),
        residency.stage("0"),
    ):
        raise AssertionError("the stage must not run")
    assert here(residency, "encoder") == [0]
    assert torch.equal(parts["encoder"].weight, weights)
    assert residency.device.memory_stats().allocated == 0


def test_a_component_that_cannot_leave_stays_on_the_device_and_leaves_later(
    sim_machine: Simulator, residency: Residency, parts: Parts
) -> None:
    weights = parts["encoder"].weight.detach().clone()
    residency.begin_request(pipeline("encoder"))
    residency.begin_stage("0")
    with sim_machine.inject(Fault("copy", Raise(lambda: RuntimeError("bus error")))):
        with pytest.raises(RuntimeError, match="bus error"):
            residency.end_stage()
        assert here(residency, "encoder") == [SIZE]
        assert torch.equal(parts["encoder"].weight.cpu(), weights)
    residency.finish_request()
    assert here(residency, "encoder") == [0]
    assert torch.equal(parts["encoder"].weight, weights)


def test_out_of_memory_gives_up_what_is_only_kept_and_tries_again(
    parts: Parts, sim_machine: Simulator, sim_device: Device
) -> None:
    residency = Residency(parts, sim_device, {"all": SnapshotOffload()}, prefetch_margin=0)
    kept = ComponentUse("encoder", keep_after_request=True)
    with residency.request(pipeline(kept)), residency.stage("0"):
        pass
    stages = pipeline("decoder")
    with sim_machine.other_process(256 * MIB - SIZE), residency.request(stages), residency.stage("0"):
        assert here(residency, "encoder", "decoder") == [0, SIZE]


def test_out_of_memory_that_stays_is_raised_with_a_note(sim_machine: Simulator, residency: Residency) -> None:
    with (
        sim_machine.inject(Fault("allocate", OutOfMemory(), times=None)),
        pytest.raises(torch.OutOfMemoryError) as caught,
        residency.request(pipeline("encoder")),
        residency.stage("0"),
    ):
        raise AssertionError("the stage must not run")
    assert any("making encoder ready" in note for note in caught.value.__notes__)


def test_a_warmup_tells_the_peak_of_each_phase(parts: Parts, sim_device: Device) -> None:
    modes = {"all": ComponentOffload()}
    residency = Residency(parts, sim_device, modes, measure_warmups=True)
    stages = pipeline(ComponentUse("encoder", "large"), ComponentUse("encoder", "small"))
    for warmup in (True, False):
        with residency.request(stages, warmup=warmup) as report:
            for name, size in (("0", 512 * KIB), ("1", 16 * KIB)):
                with residency.stage(name):
                    torch.empty(size, dtype=torch.uint8, device=sim_device.torch_device)
        expected = {("encoder", "large"): SIZE + 512 * KIB, ("encoder", "small"): SIZE + 16 * KIB}
        assert report.peaks == (expected if warmup else {})


def test_peaks_are_nobody_elses_business_unless_asked_for(residency: Residency, sim_device: Device) -> None:
    torch.empty(MIB, dtype=torch.uint8, device=sim_device.torch_device)
    with residency.request(pipeline("encoder"), warmup=True) as report, residency.stage("0"):
        pass
    assert report.peaks == {}
    assert sim_device.memory_stats().peak_allocated == MIB


@pytest.fixture
def eager(parts: Parts, sim_device: Device) -> Residency:
    return Residency(parts, sim_device, {"all": SnapshotOffload()}, prefetch_margin=SIZE)


def outcomes(report: RequestReport) -> list[tuple[str, PrefetchOutcome]]:
    return [(one.component, one.outcome) for one in report.prefetches]


def test_the_next_component_comes_while_this_one_works(eager: Residency) -> None:
    with eager.request(pipeline("encoder", "decoder")) as report:
        with eager.stage("0"):
            assert eager.device.memory_stats().allocated == 2 * SIZE
        with eager.stage("1"):
            assert here(eager, "encoder", "decoder") == [0, SIZE]
    assert outcomes(report) == [("decoder", PrefetchOutcome.STARTED)]
    assert report.bytes_in == 2 * SIZE


def test_a_whole_component_does_not_come_beside_another_unless_it_is_only_copied(
    residency: Residency,
) -> None:
    with residency.request(pipeline("encoder", "decoder")):
        with residency.stage("0"):
            assert residency.device.memory_stats().allocated == SIZE
        assert residency.device.memory_stats().allocated == SIZE  # the next one, once there is room
        with residency.stage("1"):
            pass


def test_a_component_comes_early_only_if_it_may(eager: Residency) -> None:
    with eager.request(pipeline("encoder", ComponentUse("decoder", allow_prefetch=False))) as report:
        with eager.stage("0"):
            assert eager.device.memory_stats().allocated == SIZE
        with eager.stage("1"):
            pass
    assert outcomes(report) == []


def test_a_component_comes_early_only_where_there_is_room(sim_machine: Simulator, eager: Residency) -> None:
    # Room for the two, but not for the margin beside them.
    with sim_machine.other_process(256 * MIB - 3 * SIZE + 1):
        with eager.request(pipeline("encoder", "decoder")) as report, eager.stage("0"):
            assert eager.device.memory_stats().allocated == SIZE
        assert outcomes(report)[0] == ("decoder", PrefetchOutcome.NO_ROOM)


def test_a_component_that_came_for_nothing_is_given_up(eager: Residency) -> None:
    with eager.request(pipeline("encoder", "transformer", "decoder")) as report:
        with eager.stage("0"):
            pass
        with eager.stage("2"):
            assert here(eager, "decoder") == [SIZE]
        assert eager.device.memory_stats().allocated == 0
    assert ("transformer", PrefetchOutcome.UNUSED) in outcomes(report)


def test_running_out_of_memory_beforehand_is_no_failure(sim_machine: Simulator, eager: Residency) -> None:
    with eager.request(pipeline("encoder", "decoder")) as report:
        with sim_machine.inject(Fault("allocate", OutOfMemory(), nth=2)), eager.stage("0"):
            pass
        with eager.stage("1"):
            assert here(eager, "decoder") == [SIZE]
    assert outcomes(report)[0] == ("decoder", PrefetchOutcome.OUT_OF_MEMORY)


def test_a_component_can_come_early_for_the_next_request(eager: Residency) -> None:
    stages = pipeline(ComponentUse("encoder", prefetch_after_request=True), "decoder")
    for expected in (3 * SIZE, 2 * SIZE):
        with eager.request(stages) as report:
            for name in ("0", "1"):
                with eager.stage(name):
                    pass
        assert report.bytes_in == expected
    assert eager.device.memory_stats().allocated == SIZE


def test_releases_of_one_pipeline_are_on_one_ledger(parts: Parts, sim_device: Device) -> None:
    releases = ReleasePoints(sim_device)
    residency = Residency(parts, sim_device, {"all": SnapshotOffload()}, releases=releases)
    with residency.request(pipeline("encoder")) as report, residency.stage("0"):
        pass
    assert [release.entry for release in report.releases] == list(releases.ledger)


def test_a_request_that_fails_passes_the_release_point_of_failures(residency: Residency) -> None:
    with pytest.raises(RuntimeError, match="a bug"), residency.request(pipeline("encoder")):
        raise RuntimeError("a bug")
    with pytest.raises(torch.OutOfMemoryError), residency.request(pipeline("encoder")):
        raise torch.OutOfMemoryError("no room")
    assert len(residency.releases.ledger.query(point=ReleasePoint.REQUEST_FAILED)) == 1
