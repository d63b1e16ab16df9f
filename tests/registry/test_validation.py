from __future__ import annotations

import functools
import warnings

import pytest

import devicekit
from devicekit.contract.errors import BackendLoadError, InvalidHooks
from devicekit.registry import load
from tests.required import Required


def problems_of(register, factory, **keys: object) -> str:
    with pytest.raises(InvalidHooks) as caught:
        load(register(factory, open=False, **keys))
    devicekit.unregister_backend(caught.value.backend)
    assert all(problem in str(caught.value) for problem in caught.value.problems)
    return "; ".join(caught.value.problems)


def test_every_missing_required_hook_is_named(register):
    class Empty: ...

    said = problems_of(register, Empty)
    for signature in ("is_available()", "device_count()", "synchronize(index)"):
        assert f"the required hook {signature} is missing" in said


def test_a_misspelt_hook_is_answered_with_the_nearest(register):
    class Misspelt(Required):
        @devicekit.hookimpl
        def empty_cash(self) -> None: ...

    assert "did you mean empty_cache()?" in problems_of(register, Misspelt)


def test_a_hook_of_a_later_contract_may_be_marked_optional(register):
    class Ahead(Required):
        @devicekit.hookimpl(optionalhook=True)
        def defragment(self, index: int) -> None: ...

    assert load(register(Ahead, open=False)).implemented >= {"synchronize"}


def test_an_undecorated_hook_is_not_taken_for_an_implementation(register):
    class Bare(Required):
        def empty_cache(self) -> None: ...

    assert "empty_cache is a hook of the contract but is not decorated" in problems_of(register, Bare)


def _wrong(**methods: object) -> type:
    return type("Wrong", (Required,), {name: devicekit.hookimpl(method) for name, method in methods.items()})


@pytest.mark.parametrize(
    ("method", "expected"),
    [
        (lambda self: None, "memory_info() has the wrong signature: it must be memory_info(index)"),
        (lambda self, device: None, "memory_info(device) has the wrong signature"),
        (lambda self, index, extra: None, "memory_info(index, extra) has the wrong signature"),
        (lambda self, index=0: None, "memory_info gives index a default"),
        (lambda self, *, index: None, "memory_info uses * or **"),
        (lambda self, *index: None, "memory_info uses * or **"),
        (lambda self, **kw: None, "memory_info uses * or **"),
    ],
)
def test_each_wrong_signature_is_shown_beside_the_right_one(register, method, expected):
    assert expected in problems_of(register, _wrong(memory_info=method))


def test_arguments_in_another_order_are_refused(register):
    wrong = _wrong(create_stream=lambda self, priority, index: None)
    assert "it must be create_stream(index, priority)" in problems_of(register, wrong)


def test_a_callable_that_is_no_function_is_refused_because_pluggy_would_ignore_it(register):
    class Partial(Required):
        empty_cache = functools.partial(print)

    devicekit.hookimpl(Partial.empty_cache)
    assert "is a partial, not a plain function or method" in problems_of(register, Partial)


def test_a_callable_that_is_no_hook_is_the_plugins_own_affair(register):
    class Helped(Required):
        helper = functools.partial(print)

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert register(Helped).memory_stats().allocated is None


def test_a_hook_written_as_a_property_or_a_value_is_refused(register):
    class Value(Required):
        collective_backend = "accl"

    assert "collective_backend is a hook of the contract but not a method" in problems_of(register, Value)


def test_a_hook_that_is_none_on_the_class_or_the_object_is_taken_back(register):
    class Full(Required):
        @devicekit.hookimpl
        def empty_cache(self) -> None: ...

        @devicekit.hookimpl
        def collect_ipc(self) -> None: ...

    class Less(Full):
        empty_cache = None

        def __init__(self) -> None:
            self.collect_ipc = None

    device = register(Less)
    assert not device.empty_cache()
    assert not device.collect_ipc()
    said = problems_of(register, type("None_", (Less,), {"synchronize": None}), name="other")
    assert "the required hook synchronize(index) is missing" in said


def test_a_backend_may_not_wrap_hooks(register):
    class Wrapping(Required):
        @devicekit.hookimpl(wrapper=True)
        def empty_cache(self):
            yield

    assert "empty_cache is a wrapper" in problems_of(register, Wrapping)


def test_claims_need_their_hooks_and_declarations_need_theirs(register):
    said = problems_of(
        register, Required, capabilities=["streams"], noop=["empty_cache"], emulated=["memory_info"]
    )
    assert "the manifest claims streams, which needs current_stream, create_stream, use_stream" in said
    assert "the manifest lists empty_cache as noop or emulated, and it is not implemented" in said
    assert "memory_info as noop or emulated" in said


def test_all_faults_are_reported_at_once(register):
    class Bad:
        def synchronize(self, index: int) -> None: ...

        @devicekit.hookimpl
        def device_count(self, index: int) -> int:
            return 1

        @devicekit.hookimpl
        def empty_cach(self) -> None: ...

    with pytest.raises(InvalidHooks, match="in 4 places") as caught:
        load(register(Bad, open=False))
    assert len(caught.value.problems) == 4


def test_a_property_that_raises_is_never_touched(register):
    class Touchy(Required):
        @property
        def handle(self) -> object:
            raise AssertionError("initialised the device")

    assert register(Touchy).supports("synchronize")


def test_an_object_that_cannot_be_inspected_is_a_load_error_and_no_crash(register):
    class Hostile(Required):
        def __dir__(self) -> list[str]:
            raise RuntimeError("no")

    with pytest.raises(BackendLoadError, match="could not be inspected: RuntimeError: no"):
        load(register(Hostile, open=False))


def test_a_proxy_that_answers_to_every_name_implements_nothing(register):
    class Proxy:
        def __getattr__(self, name: str) -> object:
            return getattr(Required(), name)

    assert "the required hook synchronize(index) is missing" in problems_of(register, Proxy)
