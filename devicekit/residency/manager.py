"""Residency: a component of a pipeline is on the device while it is used; then it goes where its mode says."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import nn

from devicekit.contract.records import ErrorKind
from devicekit.contract.text import shown
from devicekit.device import Device, get_device
from devicekit.oom import OutOfMemoryRecovery, OutOfMemoryReport, add_note, describe
from devicekit.ranges import whole
from devicekit.release import ReleasePoint, ReleasePoints
from devicekit.residency.components import Components, Mode
from devicekit.residency.errors import ResidencyError
from devicekit.residency.prefetching import Prefetch, PrefetchOutcome, try_prefetch
from devicekit.residency.report import ComponentRelease, RequestReport
from devicekit.residency.request import RequestState
from devicekit.residency.rule import GIB, LargeReleaseRule, Released
from devicekit.residency.transfer import HOST, Transfer
from devicekit.residency.uses import ComponentUse, Stage


class Residency:
    """The components of one pipeline on one device. One request at a time; not thread-safe.

    Work on a component is submitted to the stream that was current when its use began: that stream waits for the
    component's copies, and memory that the component leaves is used anew in its order.

    Args:
        components: by name. Looked up at each use: a module that was replaced is treated afresh.
        modes: by component name; ``"all"`` means those without one of their own. Default: `Resident`.
        releases: whose component point empties the cache; default: as the environment sets it.
        rule: when a release is large enough to empty the cache.
        prefetch_margin: bytes that a prefetch beside another component must leave free.
        pin: page-lock host copies, where the backend can.
        measure_warmups: report the peak of each use of a warm-up. This resets the device's peak statistics.

    Raises:
        UnknownComponent: a mode is for a component that is not there.
    """

    def __init__(
        self,
        components: Mapping[str, nn.Module],
        device: Device | str | torch.device | None = None,
        modes: Mapping[str, Mode] | None = None,
        *,
        releases: ReleasePoints | None = None,
        rule: LargeReleaseRule | None = None,
        prefetch_margin: int = GIB,
        pin: bool = True,
        measure_warmups: bool = False,
    ) -> None:
        self.device = get_device(device)
        self.releases = releases or ReleasePoints.configured(self.device)
        self._rule = rule or LargeReleaseRule()
        whole("prefetch_margin", prefetch_margin)
        self._margin = prefetch_margin
        self._measure_warmups = measure_warmups
        self._transfer = Transfer(self.device, pin=pin)
        self._components = Components(components, modes or {}, self._transfer)
        #: The last time a component did not fit at first.
        self.last_out_of_memory: OutOfMemoryReport | None = None
        self._request: RequestState | None = None
        self._cached: dict[str, int | None] = {}  # before each was made ready

    @property
    def synchronous(self) -> bool:
        """Whether every copy keeps the host waiting, since the backend lacks streams."""
        return not self._transfer.asynchronous

    # -- A request --------------------------------------------------------------------------------------------

    @contextmanager
    def request(
        self, stages: Sequence[Stage], *, warmup: bool | Iterable[bool] = False
    ) -> Iterator[RequestReport]:
        """Begin a request, and finish it whatever happens."""
        report = self.begin_request(stages, warmup=warmup)
        try:
            with _at_exit(self.finish_request):
                yield report
        except Exception as error:
            self._after_failure(error)
            raise

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Run a stage: its single use begins and ends with it."""
        self.begin_stage(name)
        with _at_exit(self.end_stage):
            yield

    @contextmanager
    def use(self, component: str, phase: str = "") -> Iterator[nn.Module]:
        """Use a component for the length of a block."""
        module = self.begin_use(component, phase)
        with _at_exit(lambda: self.end_use(component, phase)):
            yield module

    def begin_request(
        self, stages: Sequence[Stage], *, warmup: bool | Iterable[bool] = False
    ) -> RequestReport:
        """Take in the stages of a request. Components that are configured to be moved are parked.

        Args:
            warmup: whether this is one; for a group of requests one answer each, and then all must be.

        Raises:
            UndeclaredComponent: a component is configured to be moved, and no stage uses it.
            UnknownComponent: a stage uses a component that is not there.
            ResidencyError: the previous request was not finished.
        """
        if self._request is not None:
            raise ResidencyError("A request is under way: finish it before the next begins.")
        declared = {use.component for stage in stages for use in stage.uses}
        self._components.check(declared, "A stage uses")
        self._components.check_declared(declared)
        for name in sorted(declared):
            self._components[name]  # parked from now on
        together = warmup if isinstance(warmup, bool) else all(list(warmup) or [False])
        report = RequestReport(together, self.synchronous)
        self._transfer.bytes_in = self._transfer.bytes_out = 0
        self._request = RequestState(stages, report)
        return report

    def finish_request(self) -> RequestReport:
        """End open uses, release what is not kept, and prefetch what the next request needs."""
        request = self._current()
        try:
            if request.active is not None:
                self._finish_use(request)
            request.position = len(request.plan)
            for name, use in list(request.held.items()):
                if not request.kept(name):
                    self._release(request, use)
            self._give_up_prefetches(request, but=None)
            if self.device.properties().unified_memory and self.device.torch_device != HOST:
                self.releases.reach(ReleasePoint.COMPONENT, True)
            for use in request.plan:
                if use.prefetch_after_request:
                    self._prefetch(request, use)
        finally:
            request.report.bytes_in = self._transfer.bytes_in
            request.report.bytes_out = self._transfer.bytes_out
            self._request = None
        return request.report

    def _after_failure(self, error: Exception) -> None:
        """Pass the release point of a failed request; running out of memory has a point of its own."""
        if self.device.classify_error(error) not in (ErrorKind.OUT_OF_MEMORY, ErrorKind.DEVICE_LOST):
            self.releases.after_failed_request()

    # -- A stage ----------------------------------------------------------------------------------------------

    def begin_stage(self, name: str) -> None:
        """Go on to a stage, and begin its use if it has exactly one that starts at entry.

        Raises:
            ResidencyError: no such stage is left.
        """
        stage = self._current().enter(name)
        if (use := stage.automatic) is not None:
            self.begin_use(use.component, use.phase)

    def end_stage(self) -> None:
        """End the open use, unless the next one is the same, and drop prefetches that nobody took."""
        request = self._current()
        if request.active is not None and not request.active.same(request.upcoming):
            self._finish_use(request)
        upcoming = request.upcoming
        self._give_up_prefetches(request, but=None if upcoming is None else upcoming.component)
        request.stage = None

    # -- A use ------------------------------------------------------------------------------------------------

    def begin_use(self, component: str, phase: str = "") -> nn.Module:
        """Bring a component to the device and return it. A use of another one ends first.

        Raises:
            UnknownComponent: there is no such component.
            whatever the copy raises, out of memory after one retry; the component is where it was then.
        """
        request = self._current()
        self._components.check([component], "A stage uses")
        use = request.take(component, phase)
        if request.active is not None and not request.active.same(use):
            self._finish_use(request, following=use)
        if request.active is None:
            self._make_ready(use)
            if self._measures(request):
                self.device.reset_peak_memory_stats()
        request.active = request.held[component] = use
        self._prefetch_next(request)
        return self._components.modules[component]

    def end_use(self, component: str, phase: str = "") -> None:
        """End a use. The component stays if the next use is the same.

        Raises:
            ResidencyError: it is not in use.
        """
        request = self._current()
        active = request.active
        if active is None or not active.same(ComponentUse(component, phase)):
            raise ResidencyError(f"{shown(component)} in phase {shown(phase)} is not in use.")
        if not active.same(request.upcoming):
            self._finish_use(request)

    def forget(self, component: str) -> None:
        """Drop every reference to a component's module, which stays where its mode parks it."""
        self._cached.pop(component, None)
        self._components.forget(component)

    def on_device(self, component: str) -> int:
        """Bytes of a component that are on the device, over all its parameters and buffers."""
        return self._components[component].bytes_on_device

    # -- Parts ------------------------------------------------------------------------------------------------

    def _current(self) -> RequestState:
        if self._request is None:
            raise ResidencyError("No request is under way: begin one first.")
        return self._request

    def _measures(self, request: RequestState) -> bool:
        return self._measure_warmups and request.report.warmup

    def _make_ready(self, use: ComponentUse) -> None:
        strategy = self._components[use.component]
        if not strategy.bytes_on_device and not strategy.prefetched:
            self._cached[use.component] = self.device.memory_stats().fragmentation
        # Not kept: it refers to this object, which then only a garbage collection would free, bytes and all.
        recovery = OutOfMemoryRecovery(self.device, self.releases, lambda: self._make_room(use.component))
        try:
            recovery.run(f"making {use.component} ready", strategy.ready, use.target_dtype)
        finally:
            self.last_out_of_memory = recovery.last or self.last_out_of_memory

    def _make_room(self, component: str) -> None:
        """Release what a component needs more urgently: prefetches, and components that are only kept ready."""
        for name, strategy in self._components.attached():
            if name != component:
                strategy.park()

    def _finish_use(self, request: RequestState, following: ComponentUse | None = None) -> None:
        use, request.active = request.active, None
        assert use is not None
        if self._measures(request) and (peak := self.device.memory_stats().peak_allocated) is not None:
            phase = use.component, use.phase
            request.report.peaks[phase] = max(peak, request.report.peaks.get(phase, 0))
        coming = following or request.upcoming
        stays = coming is not None and coming.component == use.component
        if not stays and use.release_after_use and not (request.is_last(use) and request.kept(use.component)):
            self._release(request, use)
        if following is None:
            self._prefetch_next(request)

    def _release(self, request: RequestState, use: ComponentUse) -> None:
        strategy = self._components[use.component]
        before = strategy.bytes_on_device
        strategy.park()
        del request.held[use.component]
        remaining = strategy.bytes_on_device
        if remaining == before and not strategy.layerwise:
            return  # it is resident
        stats = self.device.memory_stats()
        upcoming = request.upcoming
        measured = Released(
            left=before - remaining,
            remaining=remaining,
            layerwise=strategy.layerwise,
            cached_before=self._cached.get(use.component),
            cached_after=stats.fragmentation,
            driver_free=self.device.memory_info().free,
            next_need=0 if upcoming is None else self._components[upcoming.component].bytes,
        )
        decision = self._rule.decide(use, measured, neighbour=self._has_neighbour(request, use.component))
        entry = self.releases.reach(ReleasePoint.COMPONENT, decision.empties)
        stage = "" if request.stage is None else request.stage.name
        request.report.releases.append(
            ComponentRelease(use.component, use.phase, stage, measured, decision, entry)
        )

    def _has_neighbour(self, request: RequestState, component: str) -> bool:
        return any(
            name != component and request.kept(name) and strategy.bytes_on_device
            for name, strategy in self._components.attached()
        )

    def _prefetch_next(self, request: RequestState) -> None:
        upcoming = request.upcoming
        if upcoming is not None and upcoming.allow_prefetch:
            self._prefetch(request, upcoming)

    def _prefetch(self, request: RequestState, use: ComponentUse) -> None:
        strategy = self._components[use.component]
        if self.synchronous or strategy.prefetched or strategy.bytes_on_device:
            return
        if request.active is not None and not strategy.prefetches_beside:
            return
        cached = self.device.memory_stats().fragmentation
        outcome = try_prefetch(strategy, self.device, use.target_dtype, self._margin)
        request.report.prefetches.append(Prefetch(use.component, outcome))
        if outcome is PrefetchOutcome.STARTED:
            self._cached[use.component] = cached

    def _give_up_prefetches(self, request: RequestState, but: str | None) -> None:
        for name, strategy in self._components.attached():
            if strategy.prefetched and name != but:
                strategy.park()
                request.report.prefetches.append(Prefetch(name, PrefetchOutcome.UNUSED))


@contextmanager
def _at_exit(end: Callable[[], object]) -> Iterator[None]:
    """Call ``end`` after the block. If both fail, the block's error is raised, with a note of the other."""
    try:
        yield
    except BaseException as error:
        try:
            end()
        except Exception as failure:
            add_note(error, f"Ending it failed as well: {describe(failure)}")
        raise
    end()
