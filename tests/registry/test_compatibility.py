"""The version promise: old plugins on newer hosts and newer plugins on older hosts, for every hook."""

from __future__ import annotations

import os
import subprocess
import sys
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest

import devicekit
from devicekit.contract import CAPABILITIES, HOOKS, Manifest
from devicekit.contract.errors import IncompatibleBackend, InvalidHooks, ManifestError
from devicekit.contract.names import edits
from devicekit.registry import load
from tests.required import Required
from tools.warm import Warm

WHEELS = Path(__file__).parent / "wheels"
FROZEN = ("1.0", "1.1")
OnHost = Callable[..., list[str]]


@pytest.fixture(scope="module")
def on_host(warm: Warm) -> OnHost:
    """What a script prints in a process of its own whose devicekit serves a version; empty: its own."""

    def run(version: str, script: str, *sites: Path) -> list[str]:
        paths = [*map(str, sites), str(Path(__file__).parent), *(entry for entry in sys.path if entry)]
        kept = {key: value for key, value in os.environ.items() if not key.startswith("DEVICEKIT_")}
        done = subprocess.run(
            [*warm.python, "-c", (f"import hosts; hosts.become({version!r})\n" if version else "") + script],
            env={**kept, "PYTHONPATH": os.pathsep.join(paths)},
            capture_output=True,
            text=True,
        )
        assert done.returncode == 0, done.stderr
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize("written_for", FROZEN)
def test_a_frozen_backend_opens_on_this_host_with_all_of_its_hooks(monkeypatch, written_for):
    monkeypatch.syspath_prepend(WHEELS / f"contract_{written_for.replace('.', '_')}")
    monkeypatch.delitem(sys.modules, "frozen_backend", raising=False)  # another version's
    device = devicekit.get_device("frozen")
    assert device.backend.contract == devicekit.CONTRACT_VERSION
    assert device.backend.newer == ()
    assert all(device.supports(hook) for hook in HOOKS if HOOKS[hook].since <= written_for)
    plugin = device.backend.plugin
    plugin.calls.clear()
    device.synchronize()
    device.create_stream(priority=-1)
    device.create_event(timing=True)
    device.set_memory_fraction(0.5)
    device.manual_seed(7)
    assert [call[:3] for call in plugin.calls] == [
        ("synchronize", 0),
        ("create_stream", 0, -1),
        ("create_event", 0, True),
        ("set_memory_fraction", 0, 0.5),
        ("manual_seed", 0, 7),
    ]
    assert device.memory_stats().reserved == 4
    assert device.memory_info().total == 16
    assert device.empty_cache().called


@pytest.mark.parametrize("written_for", FROZEN)
def test_a_wheel_of_a_frozen_backend_works_here_and_on_a_newer_host(tmp_path, on_host, written_for):
    wheel = wheel_of(WHEELS / f"contract_{written_for.replace('.', '_')}", tmp_path)
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as packed:  # what an installer does with one of Python alone
        packed.extractall(site)
    script = (
        "import devicekit; device = devicekit.get_device('frozen'); device.synchronize();"
        "print(device.backend.label, device.memory_stats().reserved, device.empty_cache().called)"
    )
    assert on_host("", script, site) == [f"'frozen' (frozen-backend {written_for}) 4 True"]
    hooks = sum(spec.since <= written_for for spec in HOOKS.values())
    assert on_host("1.3", EVERY_HOOK.replace("NAME", "'frozen'"), site) == [f"{hooks} 1.3"]


def wheel_of(folder: Path, into: Path) -> Path:
    """The frozen distribution packed as an installer takes it, its files untouched."""
    (metadata,) = folder.glob("*.dist-info")
    wheel = into / f"{metadata.stem}-py3-none-any.whl"
    extra = {
        f"{metadata.name}/WHEEL": "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{metadata.name}/RECORD": "",
    }
    with zipfile.ZipFile(wheel, "w") as packed:
        for file in folder.rglob("*"):
            if file.is_file() and "__pycache__" not in file.parts:
                packed.write(file, file.relative_to(folder))
        for name, text in extra.items():
            packed.writestr(name, text)
    return wheel


def test_a_backend_from_the_future_is_refused_with_both_versions_and_never_imported(monkeypatch):
    monkeypatch.syspath_prepend(WHEELS / "contract_2_0")
    with pytest.raises(IncompatibleBackend) as caught:
        devicekit.get_device("future")
    message = str(caught.value)
    assert "future-backend 7.0" in message
    assert "contract >=2.0,<3" in message
    assert f"serves {devicekit.CONTRACT_VERSION}" in message
    assert message.endswith("pip install --upgrade devicekit")
    assert "future_backend" not in sys.modules


EVERY_HOOK = """
import devicekit
from devicekit.contract import HOOKS
from devicekit.contract.errors import UnsupportedHook
from devicekit.registry import discover, load
backend = load(next(one for one in discover() if one.name == NAME))
from devicekit.device.dispatch import guarded

class Watch: ...
def watch(spec):
    source = f"def {spec.name}(self, {', '.join(spec.parameters)}):\\n    return (yield)"
    space = {}
    exec(source, space)
    return devicekit.hookimpl(wrapper=True)(space[spec.name])
for spec in HOOKS.values():
    setattr(Watch, spec.name, watch(spec))

for watched in (False, True):
    if watched:
        backend.add_observer(Watch())
    for hook, spec in HOOKS.items():
        if hook not in backend.implemented:
            continue
        call = getattr(guarded(backend), hook)
        sent = [f"<{name}>" if name not in spec.added else None for name in spec.parameters]
        backend.plugin.calls.clear()
        try:
            call(*sent)
        except devicekit.DeviceKitError as error:  # the frozen plugin's answer may not suit the arguments
            assert "returned" in str(error), error
        taken = sum(name not in spec.added or name in backend.takes(hook) for name in spec.parameters)
        [(called, *received)] = backend.plugin.calls
        assert (called, received[:taken]) == (hook, sent[:taken]), (hook, backend.plugin.calls)
        assert set(received[taken:]) <= {None}, (hook, received)
        for name in spec.added:
            if name in backend.takes(hook):
                continue
            asked = [7 if one == name else value for one, value in zip(spec.parameters, sent)]
            try:
                call(*asked)
                raise AssertionError(f"{hook} dropped {name}")
            except UnsupportedHook as error:
                assert name in str(error) and hook in str(error)
print(len(backend.implemented), backend.contract, *backend.newer)
"""


@pytest.mark.parametrize("host", ["1.1", "1.3"])
@pytest.mark.parametrize("written_for", FROZEN)
def test_every_hook_of_a_frozen_backend_works_on_a_newer_host_that_appends_to_it(on_host, written_for, host):
    site = WHEELS / f"contract_{written_for.replace('.', '_')}"
    said = on_host(host, EVERY_HOOK.replace("NAME", "'frozen'"), site)
    hooks = sum(spec.since <= written_for for spec in HOOKS.values())
    assert said == [f"{hooks} {host}"]


SOURCES = """
def written(spec):
    names = [name if name not in spec.added else f"{name}=None" for name in spec.parameters]
    return (f"    @hookimpl\\n    def {spec.name}({', '.join(['self', *names])}):\\n"
            f"        self.calls.append(({', '.join([repr(spec.name), *spec.parameters])},))\\n"
            f"        return ANSWERS.get({spec.returns!r})\\n")
from devicekit.contract import CAPABILITIES, HOOKS
print("from devicekit import hookimpl")
print("ANSWERS = {'bool': True, 'int': 1, 'str': 'x'}")
print("class Backend:\\n    def __init__(self):\\n        self.calls = []")
for spec in HOOKS.values():
    print(written(spec))
"""


@pytest.fixture(scope="module")
def of_contract_1_3(tmp_path_factory: pytest.TempPathFactory, on_host: OnHost) -> Path:
    """A backend written for a contract 1.3: every hook, old and new, with what 1.3 appends to it."""
    site = tmp_path_factory.mktemp("site")
    package = site / "newest_backend"
    package.mkdir()
    (package / "__init__.py").write_text("\n".join(on_host("1.3", SOURCES)))
    noop = [f"{kind}_of" for kind in ("ordering", "releasing", "observing")]
    (package / "backend.toml").write_text(
        '[backend]\nname = "newest"\ndevice_type = "cpu"\ncontract = ">=1.0,<2"\nindexed = false\n'
        f'capabilities = {[*CAPABILITIES, "novelty"]}\nnoop = {noop}\nhorizon = "far"\n[sensors]\nfan = 1\n'
    )
    info = site / "newest_backend-3.0.dist-info"
    info.mkdir()
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: newest-backend\nVersion: 3.0\n")
    (info / "entry_points.txt").write_text("[devicekit.backends]\nnewest = newest_backend:Backend\n")
    return site


@pytest.mark.parametrize("host", sorted({"1.0", str(devicekit.CONTRACT_VERSION)}))
def test_every_hook_of_a_newer_backend_works_on_an_older_host_and_the_rest_is_listed(
    of_contract_1_3, on_host, host
):
    said = on_host(host, EVERY_HOOK.replace("NAME", "'newest'"), of_contract_1_3)
    hooks = [spec for spec in HOOKS.values() if spec.since <= host]
    assert said[-1].startswith(f"{len(hooks)} {host} ")
    for one in ("table 'sensors'", "key 'horizon'", "hook 'ordering_of'", "capability 'novelty'"):
        assert one in said[-1]
    for spec in hooks:
        assert f"argument 'late' of {spec.name}" in said[-1]


def test_the_same_backend_has_everything_on_its_own_host(of_contract_1_3, on_host):
    said = on_host("1.3", EVERY_HOOK.replace("NAME", "'newest'"), of_contract_1_3)
    assert said[-1] == f"{len(HOOKS) + 3} 1.3 table 'sensors' key 'horizon'"


class Ahead(Required):
    @devicekit.hookimpl
    def ordering_of(self, index: int) -> int:
        raise AssertionError("an unknown hook is never called")

    @devicekit.hookimpl
    def empty_cache(self, horizon: int = 0) -> None: ...


def test_names_of_a_newer_contract_are_listed_where_the_range_admits_it_and_refused_elsewhere(register):
    opened = register(Ahead, contract=">=1.0,<2", capabilities=["novelty"], colour=1).backend
    assert opened.newer == (
        "key 'colour'",
        "capability 'novelty'",
        "hook 'ordering_of'",
        "argument 'horizon' of empty_cache",
    )
    assert opened.capabilities == frozenset()
    closed = f"=={devicekit.CONTRACT_VERSION}"
    with pytest.raises(
        InvalidHooks, match=r"ordering_of is not a hook[\s\S]*must be empty_cache\(\)|2 places"
    ):
        load(register(Ahead, name="closed", open=False, contract=closed))
    for keys in ({"colour": 1}, {"capabilities": ["novelty"]}, {"noop": ["ordering_of"]}):
        with pytest.raises(ManifestError):
            register(Required, name="never", open=False, contract=closed, **keys)


def test_an_argument_of_a_newer_contract_needs_a_default_to_be_left_out(register):
    class Bold(Required):
        @devicekit.hookimpl
        def empty_cache(self, horizon: int) -> None: ...

    with pytest.raises(InvalidHooks, match="give horizon, of a newer contract, a default"):
        load(register(Bold, open=False))


@pytest.mark.parametrize(
    "known", [*HOOKS, *CAPABILITIES, *sorted(Manifest.__dataclass_fields__.keys() - {"newer"})]
)
def test_a_misspelt_name_is_a_mistake_whatever_the_range_admits(register, known):
    misspelt = known[:-2] + known[-1] + known[-2] if known[-1] != known[-2] else known[:-1]
    hooks, keys = {}, {}
    if known in HOOKS:
        hooks[misspelt] = devicekit.hookimpl(lambda self: None)
    elif known in CAPABILITIES:
        keys["capabilities"] = [misspelt]
    else:
        keys[misspelt] = 1
    with pytest.raises((InvalidHooks, ManifestError), match=known):
        load(register(type("Misspelt", (Required,), hooks), open=False, **keys))


def test_an_added_name_is_never_within_a_misspelling_of_an_older_one():
    for table in (HOOKS, CAPABILITIES):
        for name, added in table.items():
            older = [one for one, row in table.items() if row.since < added.since]
            assert [one for one in older if edits(name, one, 2) is not None] == [], name


def test_an_added_capability_asks_nothing_of_an_older_plugin():
    for capability in CAPABILITIES.values():
        assert all(HOOKS[hook].since <= capability.since for hook in capability.hooks)


def test_a_distribution_that_lists_a_name_twice_is_told_so(site) -> None:
    name = site.install("twice")
    (entry,) = site.path.glob("*.dist-info/entry_points.txt")
    entry.write_text(entry.read_text() + "twice = devicekit_twice:Other\n")
    with pytest.raises(
        devicekit.contract.errors.DuplicateBackend, match=f"{name} lists the backend name 'twice' 2 times"
    ):
        devicekit.get_device("twice")
