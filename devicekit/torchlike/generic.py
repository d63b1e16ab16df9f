"""Any torch device module that has no plugin of its own: mps, mtia, hpu, and devices that others register."""

from __future__ import annotations

from dataclasses import replace
from types import ModuleType
from typing import cast

import torch

from devicekit.contract import CAPABILITIES, DeviceProperties, hookimpl
from devicekit.torchlike import properties
from devicekit.torchlike.backend import TorchModuleBackend
from devicekit.torchlike.child import ask_in_child
from devicekit.torchlike.effects import inert_hooks, pins, shown_by_effect, shown_to_be_there
from devicekit.torchlike.error_words import cuda_like_rules
from devicekit.torchlike.errors import ErrorRules
from devicekit.torchlike.facade import facade, lenient_functions, served_by_torch, statistics_source
from devicekit.torchlike.finding import NOTHING, Findings, found
from devicekit.torchlike.needs import hidden_overrides, hide, needs
from devicekit.torchlike.vendor import Vendor

_VISIBLE_DEVICES = {
    "hpu": "HABANA_VISIBLE_DEVICES",
    "mlu": "MLU_VISIBLE_DEVICES",
    "sdaa": "SDAA_VISIBLE_DEVICES",
    "supa": "SUPA_VISIBLE_DEVICES",
}
_ACTIVITIES = {"mtia": "MTIA", "hpu": "HPU"}

_TRIED_EACH_TIME = (
    "torch.{0} is tried in another process each time the plugin is made, which takes seconds. Keep what is found: "
    'print(GenericBackend("{0}").findings) shows what to give GenericBackend.__init__ as its second argument.'
)


class GenericBackend(TorchModuleBackend):
    """Hooks over whatever ``torch.<device_type>`` and ``torch.accelerator`` have.

    What cannot be established without knowing the vendor is absent: sharing between processes, overlapping copies,
    and pinned memory where torch itself pins none for the device. Making one finds out what torch serves by trying
    it: in a fresh process that imports the vendor's package, in a child of this one where the module was made by
    hand, or here if the device is in use already or does not tell.

    Attributes:
        findings: what was found out.
        to_the_author: what `devicekit info`, `devicekit doctor` and the suite tell the author of a subclass.

    Args:
        findings: what is known already; default: find out.

    Raises:
        ImportError: torch has no such module.
    """

    def __init__(self, device_type: str, findings: Findings | None = None) -> None:
        label = device_type.upper()
        self.vendor = Vendor(
            device_type=device_type,
            collective_backend=_collective_backend(device_type),
            visible_devices_variable=_VISIBLE_DEVICES.get(device_type),
            profiler_activity=_ACTIVITIES.get(device_type, "PrivateUse1"),
            graph_class=f"{label}Graph",
            errors=_rules(device_type, label),
        )
        self.findings = found(device_type, lambda: seen_here(device_type)) if findings is None else findings
        self._counted = 0
        if findings is None and type(self) is not GenericBackend:
            self.to_the_author: tuple[str, ...] = (_TRIED_EACH_TIME.format(device_type),)
        super().__init__()
        if told := hidden_overrides(self, self.module):
            self.to_the_author = (*getattr(self, "to_the_author", ()), *told)
        if not self.findings.pins:
            hide(self, "pin_memory", "is_pinned")
        hide(self, *self.findings.inert)
        if device_type not in _ACTIVITIES and device_type != torch._C._get_privateuse1_backend_name():
            hide(self, "profiler_activity")
        if not hasattr(self.module, "_is_in_bad_fork"):  # then is_bad_fork is absent, and nobody can know
            self.module._is_in_bad_fork = lambda: False  # type: ignore[attr-defined]
        self._source = statistics_source(self.module)

    def _load(self) -> ModuleType:
        found = self.findings
        return facade(self.vendor.device_type, self.vendor.graph_class, found.served, found.lenient)

    def _is_built(self) -> bool:
        return bool(self.module.is_available())

    @hookimpl
    @needs("device_count")
    def device_count(self) -> int:
        if not self.findings.counting_initialises:
            return super().device_count()
        if self._in_bad_fork():  # the module counts nothing there, and the devices are where they were
            return self._counted
        used = self._is_used()
        self._counted = super().device_count() if used else cast("int", ask_in_child(super().device_count))
        return self._counted

    @hookimpl
    @needs("get_device_properties")
    def device_properties(self, index: int) -> DeviceProperties:
        found = self.module.get_device_properties(index)
        if isinstance(found, dict):  # mtia
            found = _Fields(found)
        return properties.device_properties(found, architecture=None, compute_units="multi_processor_count")


def seen_here(device_type: str) -> Findings:
    """What the device does, tried in this process, which initialises it.

    Raises:
        ImportError: torch has no such module.
    """
    initialises = _counting_initialises(GenericBackend(device_type, NOTHING))
    known = Findings(served_by_torch(device_type), pins(device_type), counting_initialises=initialises)
    backend = GenericBackend(device_type, known)
    shown = frozenset(name for name in CAPABILITIES if shown_by_effect(backend, name))
    if not shown_to_be_there(backend):
        return replace(known, claims=shown)
    lenient, inert = lenient_functions(backend.module), inert_hooks(backend, shown)
    return replace(known, claims=shown, inert=inert, lenient=lenient)


def _counting_initialises(backend: GenericBackend) -> bool:
    """Whether a device that is not in use yet is initialised by being counted."""
    asked = getattr(backend.module, "is_initialized", None)
    if asked is None or asked() or backend.device_count is None:
        return False
    try:
        return backend.device_count() > 0 and bool(asked())
    except Exception:  # then nothing can be counted, here or in a child
        return False


class _Fields:
    """A mapping of properties, as an object with fields."""

    def __init__(self, found: dict[str, object]) -> None:
        self.__dict__.update(found)


def _rules(device_type: str, label: str) -> ErrorRules:
    """What runtimes say of their failures, under the name of this device."""
    like_cuda = cuda_like_rules(
        label,
        # The second as PyTorch's own reference device says it, which others start from.
        out_of_memory=rf"{label} backend out of memory|Failed to allocate \d+ bytes on {device_type} device",
        not_initialised=(
            rf"Cannot execute \w+\(\) without {label} backend|was initiali[sz]ed before this process was forked"
            rf"|Cannot use (?i:{label}) in a forked subprocess"
        ),
        device_lost=r"\w*DEVICE_LOST|[Dd]evice(?: \d+)? (?:is|was|has been) lost",
        codes={},  # whose they would be nobody knows
    )
    return replace(
        like_cuda, wrong_device=rf"{like_cuda.wrong_device}|\bno (?:such )?device {device_type}:-?\d"
    )


def _collective_backend(device_type: str) -> str | None:
    """What torch.distributed would choose for the device, where it has a choice."""
    if not torch.distributed.is_available():
        return None
    found = torch.distributed.Backend.default_device_backend_map.get(device_type)
    return None if found is None else str(found)
