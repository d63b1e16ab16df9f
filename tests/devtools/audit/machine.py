"""A machine on which small programs run before and after a rewrite, and which tells what each asked of it.

Neither torch nor devicekit is imported: both are played, and what they do to the machine is written down in one
language, so that a program that says the same through either leaves the same record.
"""

from __future__ import annotations

import builtins
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from types import ModuleType, SimpleNamespace
from typing import Any


class NoDevice(Exception):
    """What a vendor's module raises on a machine without its device."""


@dataclass
class Machine:
    """Some devices of one vendor, or none."""

    vendor: str = "cuda"
    devices: int = 2
    current: int = 0
    opened: bool = False  # whether anything was done with a device, or devicekit asked for one
    opened_by_import: bool = False
    record: list[tuple[object, ...]] = field(default_factory=list)

    def note(self, what: str, *details: object) -> str:
        """Write down what was asked; the answer names it, so that where it goes can be seen."""
        self.record.append(tuple(map(repr, (what, *details))))
        return f"<{what} {' '.join(map(str, details))}>"

    @property
    def kind(self) -> str:
        return self.vendor if self.devices else "cpu"

    @contextmanager
    def on(self, index: int | None) -> Iterator[None]:
        before = self.current
        self.current = before if index is None or index < 0 else index
        try:
            yield
        finally:
            self.current = before

    def run(self, code: str, calls: Sequence[str]) -> list[object]:
        """Execute a module and call its functions; what each left behind, or that it failed."""
        namespace: dict[str, Any] = {"__name__": "program", "__builtins__": self._builtins()}
        namespace |= {"note": self.note, "perform": _perform, "TENSOR": Tensor(self)}
        told: list[object] = []
        for line in (code, *calls):
            self.record = []
            outcome: object
            try:
                exec(compile(line, "program", "exec", dont_inherit=True), namespace)
                outcome = "ran"
            except NoDevice:
                outcome = None
            except Exception as error:
                outcome = f"{type(error).__name__}: {error}"
            told.append(None if outcome is None else (outcome, *self.record))
            self.opened_by_import = self.opened if line is code else self.opened_by_import
        return told

    def _builtins(self) -> dict[str, object]:
        modules = {**_torch(self), "devicekit": _devicekit(self), "triton": _plain("triton", jit=lambda x: x)}

        def importing(
            name: str,
            globals: Mapping[str, object] | None = None,
            locals: Mapping[str, object] | None = None,
            fromlist: Sequence[str] | None = (),
            level: int = 0,
        ) -> object:
            if name not in modules:
                if name.partition(".")[0] in ("torch", "missing"):
                    raise ImportError(name)
                return builtins.__import__(name, globals, locals, fromlist or (), level)
            return modules[name] if fromlist else modules[name.partition(".")[0]]

        return {**vars(builtins), "__import__": importing}


def _perform(function: Any, *args: object) -> None:
    made = function(*args)
    if hasattr(made, "send"):  # a coroutine
        with suppress(StopIteration):
            made.send(None)


def _plain(name: str, **members: object) -> ModuleType:
    made = ModuleType(name)
    vars(made).update(members)
    return made


class Named:
    """``torch.device``."""

    def __init__(self, text: object, index: int | None = None) -> None:
        kind, _, number = str(text).partition(":")
        self.type = kind
        self.index = int(number) if number else index

    def __repr__(self) -> str:
        return self.type if self.index is None else f"{self.type}:{self.index}"


class Tensor:
    """Something that can be moved, and says where it is."""

    def __init__(self, machine: Machine, place: object = "cpu") -> None:
        self.machine = machine
        self.device = Named(place)

    def __repr__(self) -> str:
        return f"a tensor on {self.device}"

    def cuda(self, device: object = None, non_blocking: bool = False) -> Tensor:
        machine = self.machine
        _need(machine)
        index = _index(machine, device)
        machine.note("move", f"{machine.vendor}:{index}", non_blocking)
        return Tensor(machine, f"{machine.vendor}:{index}")

    def to(self, device: object = None, dtype: object = None, non_blocking: bool = False) -> Tensor:
        machine = self.machine
        place = Named(*device) if isinstance(device, tuple) else Named(device)
        if place.type != "cpu":
            _need(machine)
            place.index = machine.current if place.index is None else place.index
        machine.note("move", str(place), non_blocking)
        return Tensor(machine, place)

    @property
    def is_cuda(self) -> bool:
        return self.device.type == "cuda"


def _need(machine: Machine) -> None:
    machine.opened = True
    if not machine.devices:
        raise NoDevice


def _index(machine: Machine, device: object) -> int:
    if isinstance(device, Tensor):
        device = device.device
    if isinstance(device, str):
        device = Named(device)
    if isinstance(device, Named):
        if device.type != machine.kind:
            raise NoDevice
        device = device.index
    return machine.current if device is None or int(device) < 0 else int(device)  # type: ignore[call-overload]  # an int


# -- What the vendor's module does --------------------------------------------------------------------------------


def _torch(machine: Machine) -> dict[str, ModuleType]:
    def asks(hook: str, *, lenient: bool = False) -> object:
        def ask(device: object = None) -> str:
            if not machine.devices and lenient:
                return "<nothing>"
            _need(machine)
            return machine.note(hook, _index(machine, device))

        return ask

    def seed(value: object) -> None:
        machine.note("seed", machine.current, value)

    def set_state(new_state: object, device: object = None) -> None:
        _need(machine)
        machine.note("set_rng_state", _index(machine, device), new_state)

    def event(enable_timing: bool = False, blocking: bool = False, interprocess: bool = False) -> str:
        _need(machine)
        return machine.note("event", machine.current, enable_timing)

    def stream(device: object = None, priority: int = 0) -> str:
        _need(machine)
        return machine.note("stream", _index(machine, device), priority)

    def use(stream: object) -> object:
        _need(machine)
        machine.note("use", stream)
        return machine.on(None)

    def set_device(device: object) -> None:
        _need(machine)
        machine.current = _index(machine, device)

    def made(*args: object, device: object = "cpu", **kwargs: object) -> Tensor:
        return Tensor(machine).to(device)

    def memory(device: object = None) -> tuple[str, str]:
        _need(machine)
        asked = machine.note("memory", _index(machine, device))
        return f"{asked} free", f"{asked} total"

    def current() -> int:
        _need(machine)
        return machine.current

    def on(device: Any) -> object:
        return machine.on(_index(machine, device))

    module = _plain(
        f"torch.{machine.vendor}",
        is_available=lambda: machine.devices > 0,
        device_count=lambda: machine.devices,
        current_device=current,
        set_device=set_device,
        device=on,
        synchronize=asks("synchronize"),
        empty_cache=asks("empty_cache", lenient=True),
        reset_peak_memory_stats=asks("reset_peaks"),
        mem_get_info=memory,
        get_device_name=asks("name"),
        current_stream=asks("current_stream"),
        get_rng_state=asks("get_rng_state"),
        set_rng_state=set_state,
        manual_seed=seed,
        Event=event,
        Stream=stream,
        stream=use,
    )
    torch = _plain(
        "torch",
        device=Named,
        zeros=made,
        tensor=made,
        **{machine.vendor: module},
        no_grad=lambda: lambda x: x,
    )
    return {"torch": torch, f"torch.{machine.vendor}": module}


# -- What devicekit does ------------------------------------------------------------------------------------------


class _Memory:
    def __init__(self, asked: str) -> None:
        self.free, self.total = f"{asked} free", f"{asked} total"
        self.free_and_total = (self.free, self.total)


class _Device:
    def __init__(self, machine: Machine, index: int) -> None:
        self.machine = machine
        self.index = index

    @property
    def torch_device(self) -> Named:
        return Named(self.machine.kind, self.index if self.machine.devices else None)

    def ask(self, hook: str, *details: object) -> str:
        return self.machine.note(hook, self.index, *details)

    def __getattr__(self, name: str) -> object:
        hooks = {
            "synchronize": "synchronize",
            "release_cache": "empty_cache" if self.machine.devices else "",
            "reset_peak_memory_stats": "reset_peaks",
            "current_stream": "current_stream",
            "get_rng_state": "get_rng_state",
            "set_rng_state": "set_rng_state",
            "manual_seed": "seed",
        }
        hook = hooks[name]
        if hook.startswith("set_") or hook == "seed":
            return lambda *args: self.machine.note(hook, self.index, *args) and None
        return (lambda *args: self.ask(hook, *args)) if hook else lambda: "<nothing>"

    def memory_info(self) -> _Memory:
        return _Memory(self.ask("memory"))

    def properties(self) -> object:
        return SimpleNamespace(name=self.ask("name"))

    def create_event(self, timing: bool = False) -> str:
        return self.ask("event", timing)

    def create_stream(self, priority: int = 0) -> str:
        return self.ask("stream", priority)

    def use_stream(self, stream: object) -> object:
        self.machine.note("use", stream)
        return self.machine.on(None)

    def current(self) -> object:
        return self.machine.on(self.index)


def _devicekit(machine: Machine) -> ModuleType:
    def opening(answer: Any) -> Any:
        machine.opened = True
        return answer

    def device_for(device: object = None) -> _Device:
        machine.opened = True
        return _Device(machine, _index(machine, device))

    def make_current(device: object) -> None:
        machine.opened = True
        machine.current = _index(machine, device)

    return _plain(
        "devicekit",
        current_device=lambda: opening(_Device(machine, machine.current)),
        device_for=device_for,
        make_current=make_current,
        accelerator_available=lambda: opening(machine.devices > 0),
        accelerator_count=lambda: opening(machine.devices),
        on_accelerator=lambda it: (it.device.type if isinstance(it, Tensor) else Named(it).type) != "cpu",
    )
