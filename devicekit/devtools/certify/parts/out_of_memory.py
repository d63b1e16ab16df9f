"""Running out of memory is recognised for what it is, recovered from, and leaves nothing behind."""

from __future__ import annotations

from collections.abc import Callable

import torch

from devicekit.contract.records import ErrorKind
from devicekit.devtools.certify.ground import Ground
from devicekit.devtools.certify.record import Findings
from devicekit.oom import OutOfMemoryRecovery, find_executable_batch_size

_IMPOSSIBLE = 1 << 60  # bytes; no device has as much
_MOST = 1024  # tensors that filling may take


def run(ground: Ground, findings: Findings) -> None:
    """Ask for the impossible, fill the device until it refuses, recover, and find the batch that fits."""
    kind = _kind(ground, lambda: _bytes(ground, _IMPOSSIBLE))
    findings.check(
        "an impossible request is recognised as out of memory", kind is ErrorKind.OUT_OF_MEMORY, str(kind)
    )
    _shrink(ground, findings)
    if ground.on_host:
        findings.check("a full device recovers", None, "the host's memory is not filled for a test")
        return
    _fill(ground, findings)


def _shrink(ground: Ground, findings: Findings) -> None:
    most = _IMPOSSIBLE >> 20
    fitted = find_executable_batch_size(
        lambda batch: len(_bytes(ground, batch << 20)), most, device=ground.device
    )
    ground.device.empty_cache()
    findings.number("batches that did not fit before one did", len(fitted.failures), "")
    findings.check("halving finds a batch that fits", fitted.batch_size < most)


def _fill(ground: Ground, findings: Findings) -> None:
    device = ground.device
    free, before = device.memory_info().free, device.memory_stats().allocated
    if free is None:
        findings.check("a full device recovers", None, "the driver does not say how much is free")
        return
    chunk = max(1 << 20, free // 16)
    kept: list[torch.Tensor] = []
    recovery = OutOfMemoryRecovery(device, free=kept.clear)
    refused: BaseException | None = None
    for _ in range(_MOST):
        try:
            kept.append(_bytes(ground, chunk))
        except Exception as error:
            refused = error.with_traceback(None)
            break
    found = None if refused is None else device.classify_error(refused)
    findings.number("filled before the device refused", len(kept) * chunk, "B")
    findings.check(
        "a full device says that it is out of memory", found is ErrorKind.OUT_OF_MEMORY, str(refused)[:200]
    )
    again = recovery.run("a large tensor on a full device", _bytes, ground, chunk * 4)
    findings.check(
        "the second attempt succeeds once room was made", recovery.recovered == 1 and again is not None
    )
    if recovery.last is not None:
        findings.note(str(recovery.last))
        release = recovery.last.release
        findings.number("given back by emptying", None if release is None else release.released, "B")
    del again
    device.empty_cache()
    after = device.memory_stats().allocated
    findings.check(
        "nothing stays allocated", None if before is None else after == before, f"{before} B, then {after} B"
    )
    now = device.memory_info().free
    findings.number("driver: free before", free, "B")
    findings.number("driver: free afterwards", now, "B")
    one = _bytes(ground, 1024).fill_(3)
    findings.check("the device computes afterwards", int(one.to(torch.int64).sum().item()) == 3072)


def _bytes(ground: Ground, size: int) -> torch.Tensor:
    return torch.empty(size, dtype=torch.uint8, device=ground.device.torch_device)


def _kind(ground: Ground, attempt: Callable[[], object]) -> ErrorKind | None:
    try:
        attempt()
    except Exception as error:
        return ground.device.classify_error(error)
    return None
