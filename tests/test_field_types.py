"""What a caller puts into a field of an operation or of sampling parameters is of its type, or refused by name."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, Protocol, TypedDict, cast

import numpy as np
import pytest

from devicekit.contract.errors import ConfigurationError
from devicekit.engine import Engine, EngineConfig
from devicekit.field_types import type_problems
from devicekit.residency import LayerwiseOffload
from devicekit.scheduling.errors import InvalidRequest
from devicekit.scheduling.messages import Operation, Pause, PauseMode, Refusal, Reply
from devicekit.scheduling.request import SamplingParams
from devicekit.server import ServerSettings
from devicekit.testing import SimConfig

_ODD: tuple[Any, ...] = (
    "abort",
    2.5,
    True,
    None,
    7,
    b"x",
    ["a"],
    ("a",),
    (1,),
    ((1, "x"),),
    {"a": 1},
    object(),
)


def _kinds(base: type[Operation]) -> Iterator[type[Operation]]:
    for kind in base.__subclasses__():
        if getattr(sys.modules[kind.__module__], kind.__name__, None) is kind:  # no class that slots replaced
            yield kind
        yield from _kinds(kind)


def _wrong(kind: type, name: str) -> Iterator[object]:
    """Values of another type than the field's, by what a new record says of them."""
    for value in _ODD:
        record: object = object.__new__(kind)
        for field in dataclasses.fields(kind):
            known = None if field.default is dataclasses.MISSING else field.default
            object.__setattr__(record, field.name, value if field.name == name else known)
        if any(one.startswith(f"{name} must be ") for one in type_problems(record)):
            yield value


@pytest.fixture(scope="module")
def engine(checkpoints: tuple[Path, Path]) -> Engine:
    return Engine.open(checkpoints[0], "cpu", config=EngineConfig(kv_tokens=1024, policy="priority"))


def test_every_field_of_every_operation_is_of_its_type_or_refused(engine: Engine) -> None:
    tried = 0
    for kind in sorted(_kinds(Operation), key=lambda one: one.__name__):
        for name in [field.name for field in dataclasses.fields(kind) if field.name != "id"]:
            for value in _wrong(kind, name):
                reply = engine.perform(kind("odd", **{name: value}), Reply)
                assert not reply.success
                if reply.refusal is not Refusal.UNSUPPORTED:  # a base, or another engine's
                    assert reply.refusal is Refusal.INVALID, reply
                    assert f"{name} must be " in reply.message
                    tried += 1
    assert tried > 400
    assert not engine.scheduler.state.paused
    assert engine.generate([[1, 2]], max_new_tokens=2, temperature=0.0)[0].completed


@pytest.mark.parametrize("name", [field.name for field in dataclasses.fields(SamplingParams)])
def test_every_field_of_sampling_parameters_is_of_its_type_or_refused(engine: Engine, name: str) -> None:
    tried = [*_wrong(SamplingParams, name)]
    assert len(tried) > 5
    for value in tried:
        with pytest.raises(InvalidRequest, match=f"{name} must be "):
            engine.generate([[1, 2]], SamplingParams(), **{name: cast(Any, value)})
        assert not engine.scheduler.state.requests


@pytest.mark.parametrize(
    ("named", "match"),
    [
        ({"priority": "high"}, "priority must be a whole number, not 'high'"),
        ({"timeout": "5"}, "timeout must be a number or None, not '5'"),
        ({"stream": "yes"}, "stream must be True or False, not 'yes'"),
        ({"request_id": 5}, "id must be a text, not 5"),
    ],
)
def test_what_belongs_to_a_request_is_of_its_type_or_refused(
    engine: Engine, named: dict[str, Any], match: str
) -> None:
    with pytest.raises(InvalidRequest, match=match):
        engine.submit([1, 2], **named)
    with pytest.raises(InvalidRequest, match=match.replace("5$", "'5_0'") if "id" in named else "must be"):
        engine.submit_samples([1, 2], 2, **{**named, "priority": named.get("priority", "high")})
    assert not engine.scheduler.state.requests


def test_parameters_are_no_mapping(engine: Engine) -> None:
    odd: Any = {"max_new_tokens": 2}
    for ask in (engine.submit, lambda *one: engine.submit_samples(one[0], 2, one[1])):
        with pytest.raises(InvalidRequest, match="params must be SamplingParams, not"):
            ask([1, 2], odd)
    with pytest.raises(InvalidRequest, match="params must be SamplingParams, not"):
        engine.generate([[1, 2]], odd)


@pytest.mark.parametrize("prompts", ["Pages of keys", b"Pages", ["half a character \ud800"]])
def test_a_text_in_place_of_a_list_of_prompts_is_no_list_of_characters(engine: Engine, prompts: Any) -> None:
    with pytest.raises(InvalidRequest, match=r"list of prompts|no text"):
        engine.generate(prompts, max_new_tokens=2)
    assert not engine.scheduler.state.requests


def test_numbers_of_other_libraries_are_numbers(engine: Engine) -> None:
    odd: dict[str, Any] = {"max_new_tokens": np.int64(2), "temperature": np.float32(0)}
    (one,) = engine.generate([[1, 2]], **odd)
    assert len(one.tokens) == 2


def test_a_mode_is_named_with_those_there_are(engine: Engine) -> None:
    reply = engine.perform(Pause("pause", "in_place"), Reply)  # type: ignore[arg-type]
    assert all(f"PauseMode.{one.name}" in reply.message for one in PauseMode)


@pytest.mark.parametrize("kind", [EngineConfig, ServerSettings, LayerwiseOffload, SimConfig])
def test_every_setting_is_of_its_type_or_refused_by_name(kind: type) -> None:
    tried = 0
    for name in [field.name for field in dataclasses.fields(kind)]:
        for value in _wrong(kind, name):
            with pytest.raises((ConfigurationError, ValueError), match=name):
                kind(**{name: value})
            tried += 1
    assert tried > 20


def test_what_cannot_be_checked_may_be_anything() -> None:
    @dataclasses.dataclass
    class Loose:
        any: Any = None
        thing: object = None
        unknown: Nowhere = None  # type: ignore[name-defined]  # noqa: F821
        number: int = 0

    assert type_problems(Loose(1, 2, 3, 4)) == []
    assert type_problems(Loose(number="4")) == ["number must be a whole number, not '4'"]  # type: ignore[arg-type]
    assert type_problems(Loose(number="4"), "any") == []  # type: ignore[arg-type]


class Follows(Protocol):
    """Anybody's own declaration, of which no value can be asked."""

    follows: bool


class Shape(TypedDict):
    """The same, of a mapping."""

    width: int


@dataclasses.dataclass(frozen=True)
class Odd(Operation):
    """An operation of another package, declared in ways that say little here."""

    protocol: Follows | None = None
    shape: Shape | None = None
    counted: Annotated[int, "at least one"] = 1
    unreadable: "int.no_such_thing" = 2  # type: ignore[name-defined]  # noqa: UP037


def test_an_operation_of_another_package_is_held_to_what_can_be_read_of_it(engine: Engine) -> None:
    handled: list[Odd] = []

    def handle(operation: Odd) -> Reply:
        handled.append(operation)
        return Reply(operation.id, True)

    engine.scheduler.control.register(Odd, handle)
    width: Any = {"width": 2}
    assert engine.perform(Odd("one", protocol=cast(Any, object()), shape=width), Reply).success
    refused = engine.perform(Odd("two", counted=cast(Any, "2")), Reply)
    assert refused.message.endswith("counted must be a whole number, not '2'.")
    assert [one.id for one in handled] == ["one"]
