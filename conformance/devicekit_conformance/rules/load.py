"""DK-LOAD: a backend can be found, imported and constructed, and importing it does nothing else."""

from __future__ import annotations

import importlib
import inspect
import os
import sys
import tempfile
import types
from collections.abc import Callable, Mapping
from importlib import metadata

from packaging.requirements import Requirement

from devicekit.contract.hooks import HOOKS
from devicekit.contract.names import misspelling_of
from devicekit.contract.versions import reaches_beyond
from devicekit_conformance import frozen_contract, process_state, processes, snapshot
from devicekit_conformance.context import MARK, Context, NotApplicable, NotRun, expect, fail
from devicekit_conformance.outcomes import Level
from devicekit_conformance.rulebook import requirement


@requirement("DK-LOAD-001", profile="core", isolated=60.0, device=False)
def loads(ctx: Context) -> None:
    """A backend MUST load: manifest, version ranges, constructor and hook signatures are accepted by the host."""
    expect(ctx.candidate.error is None, str(ctx.candidate.error))
    ctx.opened.function("is_available")


@requirement("DK-LOAD-002", profile="core", device=False)
def hooks_have_the_contracts_signatures(ctx: Context) -> None:
    """Every hook MUST be a plain method with exactly the contract's argument names and no defaults.

    pluggy drops a defaulted argument on some versions and passes it on others, and lets a hook leave arguments
    out: the backend then works on the wrong device. Judged by the suite's own copy of the contract. Where the
    manifest admits a newer contract than the host's, that one's hooks and its arguments with defaults are left
    alone.
    """
    faults: list[str] = []
    beyond = reaches_beyond(ctx.manifest.contract)
    for name in dir(ctx.plugin):
        member = inspect.getattr_static(ctx.plugin, name, None)
        if name.startswith("_") or not (callable(member) or isinstance(member, (staticmethod, classmethod))):
            continue
        function = getattr(ctx.plugin, name)
        decorated = hasattr(function, MARK)
        known = name in frozen_contract.HOOKS or frozen_contract.is_newer(name)
        if decorated and not known:
            if beyond and misspelling_of(name, HOOKS) is None:
                continue
            faults.append(f"{name} is decorated and is no hook")
        elif not decorated and known:
            faults.append(f"{name} is a hook and is not decorated")
        elif decorated:
            faults.extend(_signature_faults(name, function, beyond))
    required = [n for n, hook in frozen_contract.HOOKS.items() if hook.missing.value == "required"]
    faults.extend(f"required hook {name} is missing" for name in required if not ctx.has(name))
    expect(not faults, "; ".join(faults))


def _signature_faults(name: str, function: Callable[..., object], beyond: bool) -> list[str]:
    if not inspect.isroutine(function):
        return [f"{name} is no plain method"]
    spec = frozen_contract.hook(name)
    parameters = list(inspect.signature(function).parameters.values())
    plain = all(one.kind in (one.POSITIONAL_ONLY, one.POSITIONAL_OR_KEYWORD) for one in parameters)
    first = parameters[: len(spec.parameters)]  # what later contracts appended comes after these
    plain = plain and all(one.default is one.empty for one in first)
    own = tuple(one.name for one in parameters)
    if beyond and all(one.default is not one.empty for one in parameters[len(HOOKS[name].parameters) :]):
        own = own[: len(HOOKS[name].parameters)]
    if not plain or own[: len(first)] != spec.parameters or own not in _declared(name):
        return [f"{name}{inspect.signature(function)} must be {spec.signature}"]
    return []


def _declared(name: str) -> list[tuple[str, ...]]:
    """The parameters that the hook has in this copy of the contract, and with all that was appended since."""
    ours, theirs = frozen_contract.hook(name).parameters, HOOKS[name].parameters
    return [theirs[:count] for count in range(len(ours), len(theirs) + 1)]


@requirement("DK-LOAD-003", profile="core", isolated=60.0, device=False)
def importing_initialises_nothing(ctx: Context) -> None:
    """Importing and constructing a backend MUST NOT initialise a device."""
    ctx.opened.function("is_available")
    if ctx.probe.initialised() is None:
        raise NotApplicable("this device has no context that could be seen")
    expect(ctx.probe.initialised() is False, "a context exists after the import")


@requirement("DK-LOAD-004", profile="core", isolated=60.0, device=False)
def importing_leaves_the_process_alone(ctx: Context) -> None:
    """Importing and constructing a backend, and asking whether there is one, MUST leave the process as it was.

    No thread, process, open file, signal handler, environment variable, folder, limit, logging handler, warning
    filter, random state or default of Python's, numpy's or torch's is changed.
    """
    before, code = _state(), _code()
    ctx.device_count  # noqa: B018  # asks both hooks of presence, for the first time
    changed = process_state.changes(before, _state()) + process_state.replaced(code, _code())
    expect(not changed, f"after the import and the first questions, {'; '.join(changed)}")


def _state() -> dict[str, object]:
    """All but what a vendor's package has to do to be one: register with torch, be imported, run at exit."""
    found = {**process_state.system_state(), **process_state.python_state(), **process_state.torch_state()}
    for name in (
        "the functions that run at exit",
        "the importers",
        "the path hooks",
        "the module search path",
    ):
        found.pop(name, None)
    found["the first entries of the module search path"] = sys.path[:3]
    found["the last entry of the module search path"] = sys.path[-1:]
    found["the open files"] = process_state.descriptors()
    found["the processes that it started"] = processes.started()
    return found


def _code() -> Mapping[str, dict[str, object]]:
    """What might be replaced, without torch's: a vendor's package has to register there."""
    return {name: held for name, held in process_state.code().items() if not name.startswith("torch")}


@requirement("DK-LOAD-005", profile="core", isolated=60.0, device=False)
def importing_writes_nothing(ctx: Context) -> None:
    """Importing and constructing a backend MUST NOT write to standard output, nor its first answers to any output.

    Libraries may say something when they are loaded, to standard error.
    """
    with snapshot.captured_output() as captured:
        ctx.opened.function("is_available")
    expect(not captured.stdout, f"it wrote {captured.stdout[:200]!r}")
    for name in ("is_available", "device_count", "is_bad_fork"):
        with snapshot.captured_output() as captured:
            if ctx.has(name):
                ctx.raw_hook(name)()
        written = captured.stdout or captured.stderr
        expect(not written, f"the first call of {name}() wrote {written[:200]!r}")


@requirement("DK-LOAD-006", profile="core", isolated=60.0, device=False)
def importing_opens_no_connection(ctx: Context) -> None:
    """Importing and constructing a backend MUST NOT open a network connection or start another process."""
    seen: list[str] = []

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        # `uname -p` by the platform module is the standard library's own doing.
        if event in ("socket.connect", "socket.bind", "os.system", "os.fork", "subprocess.Popen"):
            seen.append(f"{event}{arguments[:2]!r}")

    sys.addaudithook(watch)
    ctx.opened.function("is_available")
    expect(not seen, f"it did {', '.join(seen[:3])}")


@requirement("DK-LOAD-007", profile="core", isolated=60.0, device=False)
def two_instances_agree(ctx: Context) -> None:
    """A backend constructed twice in one process MUST give the same answers both times."""
    first = ctx.plugin
    second = type(first)()
    for hook in ("is_available", "device_count", "visible_devices_variable", "collective_backend"):
        if ctx.has(hook):
            ours, theirs = getattr(first, hook)(), getattr(second, hook)()
            expect(ours == theirs, f"{hook}() is {ours!r} on the first instance and {theirs!r} on the second")


@requirement("DK-LOAD-008", profile="core", isolated=90.0, fresh=True, device=False)
def imports_in_any_order(ctx: Context) -> None:
    """A backend MUST load in an interpreter in which nothing was imported before it, torch included."""
    if "torch" in sys.modules:
        raise NotRun("torch was imported before the check began")
    ctx.opened.function("is_available")


@requirement("DK-LOAD-009", profile="core", isolated=60.0, device=False, unwaivable=True)
def importing_changes_neither_host_nor_suite(ctx: Context) -> None:
    """Importing and constructing a backend MUST NOT change devicekit or this suite."""
    for name in ("devicekit.device", "devicekit.scheduling.scheduler"):
        importlib.import_module(name)  # with everything below them
    before = snapshot.code_of("devicekit", "devicekit_conformance")
    ctx.opened.function("is_available")
    after = snapshot.code_of("devicekit", "devicekit_conformance")
    changed = sorted(name for name, code in before.items() if after.get(name) != code)
    expect(not changed, f"these are no longer what they were: {', '.join(changed[:5])}")


@requirement("DK-LOAD-010", Level.SHOULD, profile="core", device=False)
def declares_the_devicekit_it_was_built_for(ctx: Context) -> None:
    """A distribution SHOULD declare which devicekit versions it works with, with an upper bound."""
    if not ctx.target.installed:
        raise NotApplicable("the backend is not an installed distribution")
    wanted = [Requirement(text) for text in metadata.requires(ctx.candidate.distribution) or ()]
    mine = [one for one in wanted if one.name == "devicekit"]
    if not mine:
        fail(f"{ctx.candidate.distribution} does not require devicekit")
    bounded = any(part.operator in ("<", "<=", "==", "~=") for one in mine for part in one.specifier)
    expect(bounded, f"{mine[0]} has no upper bound")


@requirement("DK-LOAD-011", profile="core", isolated=90.0, device=False)
def answers_the_same_under_test(ctx: Context) -> None:
    """A backend MUST behave the same whether or not a test tool is running."""
    reading = [name for name in ("is_available", "device_count", "visible_devices_variable") if ctx.has(name)]
    plain = {name: ctx.raw_hook(name)() for name in reading}
    os.environ["PYTEST_CURRENT_TEST"] = "test_it.py::test_it (call)"
    sys.modules.setdefault("pytest", types.ModuleType("pytest"))
    again = type(ctx.plugin)()
    tested = {name: getattr(again, name)() for name in reading}
    expect(plain == tested, f"{plain} without a test tool, {tested} with one")


@requirement("DK-LOAD-012", Level.SHOULD, profile="core", isolated=60.0, device=False)
def importing_leaves_no_files(ctx: Context) -> None:
    """Importing a backend SHOULD NOT leave files in the working directory or the home directory."""
    with tempfile.TemporaryDirectory() as home:
        os.environ["HOME"] = home
        os.chdir(home)
        ctx.opened.function("is_available")
        left = sorted(os.listdir(home))
        os.chdir("/")
    expect(not left, f"it left {', '.join(left[:5])}")


@requirement("DK-LOAD-013", profile="core", isolated=60.0, device=False)
def importing_selects_nothing(ctx: Context) -> None:
    """After importing and constructing a backend, device 0 and its default stream MUST be the current ones.

    What a process begins with is what an engine relies on that has selected nothing.
    """
    if not ctx.manifest.indexed:
        raise NotApplicable("this backend has one device, which has no index")
    if ctx.device_count == 0:
        raise NotRun("there is no device on this machine")
    chosen = ctx.probe.current_index()
    expect(chosen in (None, 0), f"device {chosen} is current")
    ctx.probe.tensor(16, 0)  # after which it can be asked
    chosen = ctx.probe.current_index()
    expect(chosen in (None, 0), f"once the device is used, device {chosen} is current")
    module = getattr(ctx.probe, "runtime", None)
    current, default = (getattr(module, name, None) for name in ("current_stream", "default_stream"))
    if callable(current) and callable(default):
        for index in range(ctx.device_count):
            expect(current(index) == default(index), f"another stream of device {index} is current")
