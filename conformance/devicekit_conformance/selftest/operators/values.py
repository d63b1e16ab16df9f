"""Value: numbers, words and tensors that are not what the contract says they are."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch

from devicekit.contract.hooks import HOOKS
from devicekit_conformance.selftest.building import FIELDS, Body, Call, faulty
from devicekit_conformance.selftest.operators import Fault, operator, sentence

_BYTES_IN = (
    "allocated",
    "requested",
    "active",
    "reserved",
    "inactive_split",
    "free",
    "total",
    "total_memory",
    "used",
)


def _in_field(hook: str, field: str, change: Callable[[Any, Call], object]) -> Body:
    def body(call: Call) -> object:
        found = call.forward()
        value = getattr(found, field)
        return found if value is None else dataclasses.replace(found, **{field: change(value, call)})

    return body


def _in_numbers(
    change: Callable[[Any, Call], object], wanted: Callable[[str], bool] = bool
) -> Iterator[Fault]:
    for hook, fields in FIELDS.items():
        for field in fields:
            if wanted(field) and is_known(hook, field):
                make = partial(faulty, {hook: _in_field(hook, field, change)})
                yield Fault(
                    hook,
                    field,
                    f"{HOOKS[hook].returns}.{field} is a count or a size in bytes",
                    make,
                )


# What the honest backend does not know, so that nothing can be wrong with it.
_UNKNOWN = frozenset({
    ("device_properties", "unified_memory"), ("device_properties", "numa_node"), ("telemetry", "memory_clock"),
})  # fmt: skip
_NO_SIZES = frozenset({"compute_units", "numa_node", "physical_index"})
# Honest in what they say of the simulated machine, whatever the number is: nobody else counts these.
_UNCHECKED = frozenset({"physical_index", "clock"})
_STEADY = frozenset({"total", "total_memory", "compute_units", "capability"}) | _UNCHECKED


def is_known(hook: str, field: str) -> bool:
    return (hook, field) not in _UNKNOWN


def _is_size(field: str) -> bool:
    return not field.startswith("num_") and field not in _NO_SIZES


@operator("value")
def a_size_is_in_kibibytes() -> Iterator[Fault]:
    """A size is in KiB."""
    return _in_numbers(lambda value, call: value // 1024, _is_size)


@operator("value")
def a_size_is_in_megabytes() -> Iterator[Fault]:
    """A size is in MB."""
    return _in_numbers(lambda value, call: value // 1_000_000, _is_size)


@operator("value")
def a_size_is_in_bits() -> Iterator[Fault]:
    """A size is in bits."""
    return _in_numbers(lambda value, call: value * 8, _is_size)


@operator("value")
def a_number_is_negative() -> Iterator[Fault]:
    """A number is below zero."""
    return _in_numbers(lambda value, call: -1 - value)


@operator("value")
def a_number_is_zero() -> Iterator[Fault]:
    """A number is always 0."""
    return _in_numbers(lambda value, call: 0)


@operator("value")
def a_number_is_constant() -> Iterator[Fault]:
    """A number never changes after it was first given."""
    return _in_numbers(
        lambda value, call: call.memory.setdefault("first", value),
        lambda field: field not in _STEADY,
    )


@operator("value")
def a_number_is_a_float() -> Iterator[Fault]:
    """A number is a float."""
    return _in_numbers(lambda value, call: float(value))


@operator("value")
def a_number_wraps_at_32_bits() -> Iterator[Fault]:
    """A size is counted in 32 bits."""
    return _in_large_numbers(lambda value, call: value & 0xFFFFFFFF)


@operator("value")
def a_number_wraps_to_negative() -> Iterator[Fault]:
    """A size is counted in 32 bits with a sign."""
    return _in_large_numbers(lambda value, call: (value + 2**31) % 2**32 - 2**31)


def _in_large_numbers(change: Callable[[Any, Call], object]) -> Iterator[Fault]:
    """In sizes of which there are gigabytes: nobody locks so many of a host's pages to judge a backend."""
    for fault in _in_numbers(
        change, lambda field: _is_size(field) and field not in ("inactive_split", "clock")
    ):
        if fault.hook != "host_memory_stats":
            yield fault


@operator("value")
def a_number_is_doubled() -> Iterator[Fault]:
    """A number is twice what it is."""
    return _in_numbers(
        lambda value, call: 2 * value, lambda field: field != "compute_units" and field not in _UNCHECKED
    )


@operator("value")
def a_number_runs_backwards() -> Iterator[Fault]:
    """A counter goes down where it must go up."""
    return _in_numbers(lambda value, call: max(0, 1000 - value), lambda field: field.startswith("num_"))


@operator("value")
def a_number_is_another_fields() -> Iterator[Fault]:
    """A number is that of the field before it."""
    for hook, fields in FIELDS.items():
        known = [one for one in fields if is_known(hook, one)]
        for before, field in itertools.pairwise(known):

            def body(call: Call, before: str = before, field: str = field) -> object:
                found = call.forward()
                return dataclasses.replace(found, **{field: getattr(found, before)})

            make = partial(faulty, {hook: body})
            yield Fault(hook, field, f"{HOOKS[hook].returns}.{field} is what its name says", make)


@operator("value")
def a_peak_forgets() -> Iterator[Fault]:
    """A peak is what is there now."""
    for field in FIELDS["memory_stats"]:
        if field.startswith("peak_"):

            def body(call: Call, field: str = field) -> object:
                found = call.forward()
                return dataclasses.replace(found, **{field: getattr(found, field.removeprefix("peak_"))})

            make = partial(faulty, {"memory_stats": body})
            yield Fault("memory_stats", field, "Peaks are since the last reset", make)


@operator("value")
def a_peak_is_not_reset() -> Iterator[Fault]:
    """One of the peaks is not reset, or is reset to 0."""
    for field in FIELDS["memory_stats"]:
        if not field.startswith("peak_"):
            continue
        for variant in ("kept", "zeroed"):
            top = {"value": 0, "reset": False}

            def body(
                call: Call, field: str = field, variant: str = variant, top: dict[str, Any] = top
            ) -> object:
                found = call.forward()
                value = getattr(found, field)
                if value is None:
                    return found
                if variant == "kept":
                    top["value"] = max(top["value"], value)
                    return dataclasses.replace(found, **{field: top["value"]})
                if top["reset"]:
                    top["reset"] = False
                    return dataclasses.replace(found, **{field: 0})
                return found

            def reset(call: Call, top: dict[str, Any] = top) -> object:
                top["reset"] = True
                return call.forward()

            make = partial(faulty, {"memory_stats": body, "reset_peak_memory_stats": reset})
            yield Fault(
                "reset_peak_memory_stats", f"{field}_{variant}", sentence("reset_peak_memory_stats"), make
            )


@operator("value")
def free_is_above_total() -> Iterator[Fault]:
    """The driver's figures contradict each other, or what can be allocated."""
    changes: dict[str, Callable[[Any], dict[str, object]]] = {
        "above_total": lambda found: {"free": found.total + 1},
        "swapped": lambda found: {"free": found.total, "total": found.free},
        "total_is_free": lambda found: {"total": found.free},
        "all_free": lambda found: {"free": found.total},
        "half": lambda found: {"free": found.free // 2, "total": found.total // 2},
        "tenfold": lambda found: {"free": found.free * 10, "total": found.total * 10},
        "source": lambda found: {"source": "driver"},
        "less_allocated": lambda found: {"free": max(0, found.free - (1 << 30))},
    }
    for name, change in changes.items():

        def body(call: Call, change: Callable[[Any], dict[str, object]] = change) -> object:
            found = call.forward()
            return dataclasses.replace(found, **change(found))

        make = partial(faulty, {"memory_info": body})
        yield Fault("memory_info", name, sentence("memory_info"), make)


@operator("value")
def more_can_be_allocated_than_there_is() -> Iterator[Fault]:
    """The device gives out more than it says there is."""

    def body(call: Call) -> object:
        found = call.forward()
        return dataclasses.replace(found, free=min(found.free, 2 << 30), total=2 << 30)

    def properties(call: Call) -> object:
        return dataclasses.replace(call.forward(), total_memory=2 << 30)

    make = partial(faulty, {"memory_info": body, "device_properties": properties})
    yield Fault("memory_info", "", sentence("memory_info"), make)


@operator("value")
def a_plain_answer_is_wrong() -> Iterator[Fault]:
    """A hook that answers yes, no, a number or a word gives another."""
    changes: dict[str, dict[str, Callable[[Any], object]]] = {
        "bool": {
            "inverted": lambda found: not found,
            "number": lambda found: int(found),
            "none": lambda found: None,
        },
        "int": {
            "one_more": lambda found: found + 1,
            "one_less": lambda found: found - 1,
            "text": lambda found: str(found),
            "none": lambda found: None,
            "float": lambda found: float(found),
        },
        "str": {
            "other": lambda found: found + "x",
            "upper": lambda found: found.upper(),
            "empty": lambda found: "",
            "none": lambda found: None,
        },
        "str | None": {"other": lambda found: "OTHER_VISIBLE_DEVICES", "empty": lambda found: ""},
    }
    for hook, spec in HOOKS.items():
        for name, change in changes.get(spec.returns, {}).items():
            if hook == "native_handle" and name.startswith("one_"):
                continue  # the value is opaque, and torch tells none of the simulated device to compare it with
            body = partial(_changed, change)
            yield Fault(hook, name, sentence(hook), partial(faulty, {hook: body}))


def _changed(change: Callable[[Any], object], call: Call) -> object:
    return change(call.forward())


@operator("value")
def nothing_is_returned_for_something() -> Iterator[Fault]:
    """A hook that returns nothing returns something, or the other way round."""
    for hook, spec in HOOKS.items():
        if spec.returns == "None":
            body: Body = lambda call: call.forward() or True  # noqa: E731
        elif "None" in spec.returns:
            continue
        else:
            body = lambda call: call.forward() and None  # noqa: E731
        yield Fault(hook, "", f"{spec.declaration}", partial(faulty, {hook: body}))


@operator("value")
def a_property_is_wrong() -> Iterator[Fault]:
    """A property of the device is not the device's."""
    changes: dict[str, dict[str, object]] = {
        "name_empty": {"name": ""},
        "uuid_shared": {"uuid": "sim-00000000"},
        "uuid_other": {"uuid": "sim-00000099"},
        "memory_half": {"total_memory": 8 << 30},
        "memory_text": {"total_memory": "16 GiB"},
        "units_zero": {"compute_units": 0},
        "unified": {"unified_memory": True},
        "unified_text": {"unified_memory": "no"},
        "name_other": {"name": "Another accelerator"},
        "architecture_number": {"architecture": 1.0},
        "driver_zero": {"driver": 0},
    }
    for name, change in changes.items():

        def body(call: Call, change: dict[str, object] = change) -> object:
            return dataclasses.replace(call.forward(), **change)

        make = partial(faulty, {"device_properties": body})
        yield Fault("device_properties", name, sentence("device_properties"), make)

    def varying(call: Call) -> object:
        return dataclasses.replace(call.forward(), driver=str(call.number))

    make = partial(faulty, {"device_properties": varying})
    yield Fault("device_properties", "varying", sentence("device_properties"), make)


@operator("value")
def random_numbers_are_wrong() -> Iterator[Fault]:
    """Seeding, reading and restoring the generator does something else."""
    from devicekit_conformance.selftest.honest import machine

    def seeding(change: Callable[[int], int]) -> Body:
        return lambda call: call.honest(call.arguments[0], change(call.arguments[1]))

    for name, change in {
        "ignored": lambda seed: 0,
        "wraps_31": lambda seed: seed & 0x7FFFFFFF,
        "wraps_16": lambda seed: seed & 0xFFFF,
        "absolute": lambda seed: seed // 2,
        "no_zero": lambda seed: seed or 1,
    }.items():
        body = seeding(change)
        yield Fault("manual_seed", name, sentence("manual_seed"), partial(faulty, {"manual_seed": body}))

    def entropy(call: Call) -> None:
        call.honest(call.arguments[0], call.number * 7919)

    yield Fault("manual_seed", "varying", sentence("manual_seed"), partial(faulty, {"manual_seed": entropy}))

    def only_seed(call: Call) -> None:
        machine().device(call.arguments[0]).generator.manual_seed(
            machine().device(call.arguments[0]).generator.initial_seed()
        )

    def advance(call: Call) -> object:
        found = call.forward()
        torch.rand(1, device=torch.device("sim", call.arguments[0]))
        return found

    def device_copy(call: Call) -> object:
        return call.forward().to(torch.int64)

    def zeros(call: Call) -> object:
        return torch.zeros_like(call.forward())

    def keeps(call: Call) -> None:
        call.forward()
        call.arguments[1].zero_()

    def from_the_start(call: Call) -> object:
        index, state = call.arguments
        first = torch.empty(0, dtype=torch.uint8).set_(state.untyped_storage(), 0, state.shape, (1,))
        return call.honest(index, first)

    def host_too(call: Call) -> object:
        torch.set_rng_state(call.arguments[1])
        return call.forward()

    for name, hook, body in (
        ("only_the_seed", "set_rng_state", only_seed),
        ("advances", "get_rng_state", advance),
        ("dtype", "get_rng_state", device_copy),
        ("zeros", "get_rng_state", zeros),
        ("spoils_its_argument", "set_rng_state", keeps),
        ("from_where_its_storage_begins", "set_rng_state", from_the_start),
        ("the_hosts_too", "set_rng_state", host_too),
    ):
        yield Fault(hook, name, sentence(hook), partial(faulty, {hook: body}))
