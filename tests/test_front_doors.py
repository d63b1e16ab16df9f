"""Every room says what it is, exports what is public, and costs no more to enter than it must."""

from __future__ import annotations

import importlib
import json
import pkgutil
import re
import subprocess
import sys
import types

import pytest

import devicekit

TORCH = {"torch", "numpy"}  # torch imports numpy where it finds it

# What of the world outside entering a room brings with it, besides the standard library, pluggy and packaging.
DOORS: dict[str, set[str]] = {
    "devicekit": set(),
    "devicekit.cli": set(),
    "devicekit.commands": set(),
    "devicekit.contract": set(),
    "devicekit.registry": set(),
    "devicekit.devtools": set(),
    "devicekit.devtools.audit": set(),
    "devicekit.devtools.doctor": set(),
    "devicekit.devtools.scaffold": set(),
    "devicekit.device": TORCH,
    "devicekit.engine": TORCH,
    "devicekit.fleet": set(),
    "devicekit.memory": TORCH,
    "devicekit.observe": TORCH,
    "devicekit.oom": TORCH,
    "devicekit.ray_serve": set(),
    "devicekit.release": TORCH,
    "devicekit.residency": TORCH,
    "devicekit.runners": TORCH,
    "devicekit.scheduling": TORCH,
    "devicekit.server": TORCH,
    "devicekit.testing": TORCH,
    "devicekit.text": TORCH,
    "devicekit.torchlike": TORCH,
    "devicekit.weights": TORCH,
}
# What anybody may have loaded: these are watched, whoever imports them.
HEAVY = {
    "PIL",
    "jinja2",
    "libcst",
    "llguidance",
    "openai",
    "prometheus_client",
    "pydantic",
    "pytest",
    "ray",
    "rich",
    "safetensors",
    "starlette",
    "tokenizers",
    "transformers",
    "uvicorn",
    "zmq",
    *TORCH,
}
PLUGINS = {f"devicekit_{name}" for name in ("cpu", "cuda", "musa", "npu", "rocm", "xpu", "conformance")}


# What each room loads on top of what stands before: torch takes seconds, and is loaded once for those that may.
_SCRIPT = """
import json, os, sys
before, *doors = sys.argv[1:]
exec(before)
for door in doors:
    sys.stdout.flush()
    child = os.fork()
    if child == 0:
        __import__(door)
        print(json.dumps([door, sorted({name.split(".")[0] for name in sys.modules})]), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, door
"""


@pytest.fixture(scope="module")
def loaded() -> dict[str, set[str]]:
    """Top-level names of what a fresh interpreter has loaded after a room was entered, by the room."""
    found: dict[str, set[str]] = {}
    for allowed, before in ((TORCH, "import torch, numpy"), (set(), "pass")):
        doors = [door for door, outside in DOORS.items() if outside == allowed]
        command = [sys.executable, "-c", _SCRIPT, before, *doors]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
        found |= {door: set(names) for door, names in map(json.loads, done.stdout.splitlines())}
    return found


# With nothing installed but torch: what a room and its names say where they cannot be had.
_BARE = """
import importlib, json, os, sys
absent, *doors = sys.argv[1:]
sys.modules.update(dict.fromkeys(absent.split(",")))
import torch
for door in doors:
    child = os.fork()
    if child == 0:
        said = []
        try:
            room = importlib.import_module(door)
        except Exception as error:
            said.append(f"{door}: {error}")
        else:
            for name in getattr(room, "__all__", ()):
                try:
                    getattr(room, name)
                except Exception as error:
                    said.append(f"{door}.{name}: {error}")
        print(json.dumps(said), flush=True)
        os._exit(0)
    assert os.waitpid(child, 0)[1] == 0, door
"""


def test_without_its_packages_a_room_opens_or_names_the_extra():
    command = [sys.executable, "-W", "ignore", "-c", _BARE, ",".join({*HEAVY, "numpy"} - {"torch"}), *DOORS]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=300)
    said = [text for line in done.stdout.splitlines() for text in json.loads(line)]
    assert any(text.startswith("devicekit.memory: ") for text in said)
    assert [text for text in said if not re.search(r"pip install 'devicekit\[\w+\]'", text)] == []


def rooms() -> list[str]:
    """Every package of devicekit's first level."""
    found = [one.name for one in pkgutil.iter_modules(devicekit.__path__, "devicekit.") if one.ispkg]
    return ["devicekit", *found]


def test_the_table_names_every_room():
    assert set(rooms()) <= DOORS.keys()


@pytest.mark.parametrize("door", DOORS)
def test_entering_a_room_loads_no_more_than_it_must(door, loaded):
    assert loaded[door] & (HEAVY | PLUGINS) <= DOORS[door]


@pytest.mark.parametrize("door", rooms())
def test_a_room_says_what_it_is_and_has_every_name_that_it_exports(door):
    room = importlib.import_module(door)
    assert len((room.__doc__ or "").strip().splitlines()[0]) > 20
    exported = getattr(room, "__all__", ())
    assert len(exported) == len(set(exported))
    for name in exported:
        assert getattr(room, name) is not None
        assert not isinstance(getattr(room, name), types.ModuleType), name
    assert set(exported) <= set(dir(room))


@pytest.mark.parametrize(
    "door", [one for one in rooms() if one not in ("devicekit.commands", "devicekit.devtools")]
)
def test_a_room_exports_something_and_says_what_it_does_not_have(door):
    room = importlib.import_module(door)
    assert room.__all__
    with pytest.raises(AttributeError, match="no attribute 'no_such_name'"):
        room.no_such_name  # noqa: B018
