"""Authors of plugins are told what is old in theirs and what is going away, where authors look; users are not."""

from __future__ import annotations

import subprocess
import warnings

import pytest

import devicekit
from devicekit.contract.going import Going
from devicekit.registry import notices as module
from devicekit.registry.notices import notices
from tests.required import Required


class Old(Required):
    """Written before create_graph() took a pool."""

    @devicekit.hookimpl
    def create_graph(self, index: int) -> object: ...

    @devicekit.hookimpl
    def get_rng_state(self, index: int) -> object: ...


class New(Old):
    @devicekit.hookimpl
    def create_graph(self, index: int, pool: object | None = None) -> object: ...


def test_a_plugin_of_this_contract_hears_nothing(register) -> None:
    assert notices(register(New).backend) == ()


def test_a_missing_appended_argument_is_named_with_what_to_write(register) -> None:
    (notice,) = notices(register(Old).backend)
    assert notice.startswith("create_graph() does not take pool, which contract 1.1 appended")
    assert "pool=None" in notice


def test_what_a_base_class_tells_is_passed_on_and_anything_else_is_not(register) -> None:
    class Tells(New):
        to_the_author = ("Keep what was found out.", 7)

    class Raises(New):
        def __getattr__(self, name: str) -> object:
            if name == "to_the_author":
                raise RuntimeError("nobody is home")
            raise AttributeError(name)

    assert notices(register(Tells).backend) == ("Keep what was found out.",)
    assert notices(register(Raises, name="raises").backend) == ()


def test_a_range_that_ends_before_this_contract_is_named(register) -> None:
    first, _ = notices(register(Old, contract=">=1.0,<1.1").backend)
    assert first.startswith("The range of contracts ends at 1.0, and this devicekit speaks ")
    assert str(devicekit.CONTRACT_VERSION) in first


@pytest.mark.parametrize(
    ("going", "told"),
    [
        (Going("hook", "get_rng_state", "1.4", "implement random_state() instead"), True),
        (Going("hook", "set_rng_state", "1.4", "implement random_state() instead"), False),
        (Going("argument", "create_graph.pool", "1.4", "take an arena instead"), True),
        (Going("capability", "graphs", "1.4", "claim replay instead"), False),
        (Going("capability", "driver_memory", "1.4", "claim totals instead"), True),
        (Going("key", "noop", "1.4", "list it under free"), True),
        (Going("key", "visible_devices_variable", "1.4", "implement the hook"), False),
    ],
)
def test_a_name_that_is_going_away_is_told_to_those_who_use_it(register, monkeypatch, going, told) -> None:
    class Graphs(New):
        @devicekit.hookimpl
        def memory_info(self, index: int) -> object: ...

        @devicekit.hookimpl
        def set_index(self, index: int) -> None: ...

    monkeypatch.setattr(module, "GOING", (going,))
    opened = register(Graphs, capabilities=["driver_memory"], noop=["set_index"]).backend
    assert [going.instead in notice and going.name in notice for notice in notices(opened)] == [True] * told


def test_using_such_a_plugin_warns_nobody(register) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        device = register(Old, contract=">=1.0,<1.1")
        device.synchronize()


COMMANDS = {
    "info": ["info", "--device", "aged"],
    "doctor": ["doctor"],
    "suite": ["conformance", "run", "--backend", "aged", "--only", "DK-CORE-001", "--quiet"],
}


@pytest.mark.parametrize(
    "command", ["info", "suite", pytest.param("doctor", marks=pytest.mark.thorough)]
)  # the doctor asks many processes
def test_info_doctor_and_the_suite_tell_the_author(warm, site, child_environment, command) -> None:
    code = """
        from devicekit_cpu import Backend as Host

        class Backend(Host):
            pass
    """
    site.install("aged", code, contract=">=1.0,<1.1", host=True, noop=["synchronize", "set_index"])
    environment = {**child_environment, "DEVICEKIT_ALLOWED_DISTRIBUTIONS": "devicekit-aged"}
    done = subprocess.run(
        [*warm.python, "-m", "devicekit", *COMMANDS[command]],
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "to the plugin's author: The range of contracts ends at 1.0" in done.stdout
