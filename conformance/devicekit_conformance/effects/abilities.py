"""What a device can compute in, whom it reaches, and how it is doing."""

from __future__ import annotations

import torch

from devicekit_conformance.context import NotApplicable, NotRun
from devicekit_conformance.effects import effect
from devicekit_conformance.trial import Trial

# Wide enough for any machine, and narrow enough to tell units apart. A device that is on draws power and ticks.
_RANGES = {
    "temperature": (-60.0, 150.0),
    "power": (0.1, 10_000.0),
    "utilisation": (0.0, 1.0),
    "clock": (1e7, 1e10),
    "memory_clock": (1e7, 1e10),
}
_WHOLE = ("clock", "memory_clock")
# torch's own functions, and what their figures are multiplied by.
_OWN = {"temperature": ("temperature", 1.0), "utilisation": ("utilization", 0.01)}


# Truth values, scales of other numbers, and what torch has no arithmetic for.
_ONLY_STORED = frozenset({"bool", "float8_e8m0fnu", "uint16", "uint32", "uint64"})


@effect("supported_dtypes")
def supported_dtypes(trial: Trial) -> None:
    found = trial.call(trial.index)
    trial.equal(trial.call(trial.index), found, "the second answer")
    if found is None:
        return
    strange = [one for one in found if not isinstance(one, torch.dtype)]
    trial.expect(not strange, f"it has {strange[:1]}, no dtype")
    trial.expect(bool(found), "it is empty: what is not known is None")
    for dtype in sorted(found, key=str):
        name = str(dtype).rpartition(".")[2]
        trial.expect(name not in _ONLY_STORED, f"it has {dtype}, in which nothing multiplies")
        if dtype.is_floating_point and dtype.itemsize > 1:
            raised = _multiplies(trial, dtype)
            trial.expect(not raised, f"it has {dtype}, in which {raised}")
    _of_eight_bits(trial, {str(one).rpartition(".")[2] for one in found})
    for dtype in (torch.float32, torch.float16, torch.bfloat16, torch.float64):
        lacks = dtype not in found and not _multiplies(trial, dtype)
        trial.expect(not lacks, f"it lacks {dtype}, in which the device multiplies")


def _of_eight_bits(trial: Trial, names: set[str]) -> None:
    """No hardware has both forms of a format, and no processor the one whose zero has no sign."""
    for form in ("float8_e4m3fn", "float8_e5m2"):
        other = f"{form}uz" if form.endswith("fn") else f"{form}fnuz"
        trial.expect(not {form, other} <= names, f"it has {form} and {other}, of which hardware has one")
        impossible = trial.ctx.manifest.host and other in names
        trial.expect(not impossible, f"it has {other}, in which no processor multiplies")


def _multiplies(trial: Trial, dtype: torch.dtype) -> str:
    """What is wrong with a product of two matrices; nothing where it is right."""
    left = torch.eye(4) * 2 + torch.diag(torch.ones(3), 1)
    there = trial.tensor(16 * dtype.itemsize)
    try:
        there = there.view(dtype).reshape(4, 4).copy_(left)
        product = (there @ there).cpu().float()
    except (NotRun, NotApplicable):
        raise
    except Exception as error:
        return f"a product raised {type(error).__name__}: {str(error)[:80]}"
    return "" if torch.equal(product, left @ left) else "a product is wrong"


@effect("can_access_peer")
def can_access_peer(trial: Trial) -> None:
    own = getattr(trial.runtime, "can_device_access_peer", None)
    trial.call(trial.index, trial.index)  # of a device and itself it may say either
    for peer in trial.others[:2]:
        found = trial.call(trial.index, peer)
        trial.equal(trial.call(trial.index, peer), found, "the second answer")
        if callable(own):
            trial.equal(found, bool(own(trial.index, peer)), f"whether it reaches device {peer}")
        if found:
            there = trial.filled(4096, 7, peer)
            trial.finish()
            here = trial.tensor(4096).copy_(there)
            trial.expect(bool((here.cpu() == 7).all()), f"what it reads of device {peer} is something else")
    if trial.ctx.manifest.indexed:
        for peer in (trial.count, -1):
            try:
                found = trial.ctx.raw_hook(trial.hook)(trial.index, peer)
            except Exception:
                continue
            trial.expect(found is not True, f"there is no device {peer}, and it says that it can be reached")


@effect("telemetry")
def telemetry(trial: Trial) -> None:
    unused = trial.ctx.probe.initialised() is False
    found = trial.call(trial.index)
    trial.expect(not unused or trial.ctx.probe.initialised() is not True, "it initialised the device")
    again = trial.call(trial.index)
    for name, (low, high) in _RANGES.items():
        value = getattr(found, name)
        trial.expect(
            (value is None) == (getattr(again, name) is None), f"{name} is known in one of two calls"
        )
        if value is None:
            continue
        plain = type(value) is int if name in _WHOLE else type(value) in (int, float)
        trial.expect(plain, f"{name} is {value!r}")
        trial.expect(low <= value <= high, f"{name} is {value!r}: the unit is another")
        function, factor = _OWN.get(name, ("", 1.0))
        truth = trial.own(function, trial.index) if function else None
        if isinstance(truth, int | float) and name == "temperature":
            near = abs(value - truth * factor) <= 20
            trial.expect(near, f"{name} is {value!r}, and torch's own says {truth}")
