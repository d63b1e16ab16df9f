"""Peaks: as high as what was reached since the last reset, and lowered by nothing else."""

from __future__ import annotations

from collections.abc import Callable

from devicekit_conformance.effects import effect
from devicekit_conformance.measures import BLOCK, ROUNDING, large_of
from devicekit_conformance.trial import Trial

__all__ = ["peaks_outlast"]


_PEAKS = ("peak_allocated", "peak_active", "peak_reserved")


def peaks_outlast(trial: Trial) -> None:
    """Only who resets them lowers peaks: not running out of memory, and not an emptied or limited device."""
    top = trial.tensor(large_of(trial))
    del top

    def limit() -> None:
        for fraction in (0.5, 1.0):
            trial.other("set_memory_fraction", trial.index, fraction)

    deeds: dict[str, Callable[[], object]] = {
        "the cache was emptied": lambda: trial.other("empty_cache"),
        "the device ran out of memory": lambda: trial.ctx.probe.exhaust(trial.index),
        "a limit was set and taken away": limit,
    }
    needs = {"the cache was emptied": "empty_cache", "a limit was set and taken away": "set_memory_fraction"}
    before = trial.call(trial.index)
    for what, deed in deeds.items():
        if what in needs and not trial.has(needs[what]):
            continue
        deed()
        after = trial.call(trial.index)
        for name in _PEAKS:
            was, now = getattr(before, name), getattr(after, name)
            told = f"{name} was {was}, and is {now} once {what}"
            trial.expect(was is None or now is None or now >= was, told)


@effect("reset_peak_memory_stats")
def reset_peak_memory_stats(trial: Trial) -> None:
    if trial.ctx.probe.initialised() is False:
        trial.call(trial.index)
    size = large_of(trial)
    if trial.calls[0] <= 1:
        trial.ctx.probe.exhaust(trial.index)  # so that there is something to forget
        trial.own("empty_cache")
    for index in range(trial.count):
        top = trial.tensor(size + 512 * index, index)
        del top
        trial.own("empty_cache")  # so that the peak of what is reserved is above what is
        kept = trial.tensor(BLOCK, index)
        del kept
    before = {index: _peaks(trial, index) for index in range(trial.count)}
    counters = _counters(trial)
    trial.call(trial.index)
    trial.equal(_counters(trial), counters, "what is counted since the start")
    for index in range(trial.count):
        now = _peaks(trial, index)
        for name, (value, peak) in now.items():
            if index == trial.index:
                near = value <= peak <= value + ROUNDING
                trial.expect(near, f"right after it, {name} is {value} and its peak {peak}")
            else:
                trial.equal(peak, before[index][name][1], f"the peak of {name} on device {index}")
    if not trial.situation:
        _is_reset_to_less(trial, size)


def _is_reset_to_less(trial: Trial, size: int) -> None:
    """A reset makes peaks equal to what is, be that more or less than at the reset before."""
    kept = trial.tensor(size)
    trial.call(trial.index)
    top = trial.tensor(size)
    del kept, top
    trial.drop_cache()
    trial.call(trial.index)
    for name, (value, peak) in _peaks(trial, trial.index).items():
        near = value <= peak <= value + ROUNDING
        trial.expect(near, f"reset once more, with less in use, {name} is {value} and its peak {peak}")


def _counters(trial: Trial) -> list[object]:
    own = trial.own("memory_stats", trial.index)
    names = ("num_ooms", "num_alloc_retries", "num_device_alloc", "num_device_free")
    return [own.get(name) if isinstance(own, dict) else None for name in names]


def _peaks(trial: Trial, index: int) -> dict[str, tuple[int, int]]:
    own = trial.own("memory_stats", index)
    if isinstance(own, dict) and own:
        names = ("allocated_bytes.all", "active_bytes.all", "reserved_bytes.all")
        return {one: (own[f"{one}.current"], own[f"{one}.peak"]) for one in names if f"{one}.peak" in own}
    if not trial.has("memory_stats"):
        return {}
    found = trial.other("memory_stats", index)
    pairs = (
        (name, getattr(found, name), getattr(found, f"peak_{name}")) for name in ("allocated", "reserved")
    )
    return {name: (value, peak) for name, value, peak in pairs if value is not None and peak is not None}
