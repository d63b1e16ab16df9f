"""The process in which a backend is imported and tried. It may hang, crash or be killed; the judge outlives it."""

from __future__ import annotations

import contextlib
import faulthandler
import json
import os
import resource
import signal
import socket
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

from devicekit_conformance import frozen_contract, processes, wire
from devicekit_conformance.context import Context, Failure, NotApplicable, NotRun
from devicekit_conformance.device_check import too_small
from devicekit_conformance.integrity import guard
from devicekit_conformance.outcomes import Status
from devicekit_conformance.plain_text import plain, told
from devicekit_conformance.probe_check import faults_of_probe
from devicekit_conformance.rulebook import Requirement, rulebook
from devicekit_conformance.target import Target, UsageError

_OWN = Path(__file__).parent
# Verdicts as the words that travel, fixed before a backend can touch the enumeration.
_WORDS: Mapping[Status, str] = {one: one.value for one in Status}
_PASSES = _WORDS[Status.PASS]
LEFT_BEHIND = "processes left"  # the cause of such a failure; the worker is not used again
_CHILDREN_LIMIT = 0.5  # seconds; only where there are children
_FACT_LIMIT = 300  # characters of one text among the facts


def serve(connection: socket.socket, log: int) -> None:
    """Answer requests until the judge closes the connection.

    The judge first sends the key for signing, then the order as JSON: ``target`` (address, probe, folder),
    ``path`` (its sys.path) and ``folder`` (its working one).

    Args:
        log: file descriptor that takes over standard output and error.
    """
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the judge decides when this ends
    resource.setrlimit(resource.RLIMIT_CORE, (0, resource.getrlimit(resource.RLIMIT_CORE)[1]))
    faulthandler.enable(file=log)  # a crash, or a time-out that ends in SIGABRT, says where
    say = wire.speaker(connection, connection.recv(wire.KEY_BYTES))
    order = json.loads(connection.recv(wire.LARGEST))
    path = order["path"]
    sys.path[:] = [*path, *(one for one in sys.path if one not in path)]
    os.chdir(str(order["folder"]))
    context = Context(Target(*order["target"]), lambda text: say(0, "note", plain(text, 200)))
    rules, picture, own = rulebook(), guard(), os.getpid()
    getpid, leave, receive, loads = os.getpid, os._exit, connection.recv, json.loads
    say(0, "hello", str(own))
    while request := receive(wire.LARGEST):
        number, kind, argument = loads(request)
        if kind == "confirm":
            say(number, "confirm", argument)
        elif kind == "facts":
            say(number, "facts", _facts(context))
        elif kind == "probe":
            say(number, "probe", faults_of_probe(context))
        elif kind == "device":
            say(number, "device", too_small(context))
        else:
            status, message, seconds, cause = examine(rules[argument], context)
            if (
                getpid() != own
            ):  # the backend forked, and its child came back into the suite: that is an answer
                say(number, "answer")  # from another process, and the judge will not have it
                leave(0)
            _let_children_end()
            changed = ", ".join(picture.changed()[:5])
            if status == _PASSES and (left := processes.strays()):
                names = ", ".join(f"{plain(one.name, 40)} ({one.pid})" for one in left[:5])
                status, cause = _WORDS[Status.FAIL], LEFT_BEHIND
                message = f"it left processes in sessions of their own: {names}"
            say(number, "answer", argument, status, f"{seconds:.4f}", cause, changed, message)


def _let_children_end() -> None:
    """Give what the backend forked time to come back here before this process answers, if anything was forked."""
    deadline = time.monotonic() + _CHILDREN_LIMIT
    with contextlib.suppress(ChildProcessError):
        options = os.WEXITED | os.WNOHANG | os.WNOWAIT
        while (
            processes.has_children()
            and os.waitid(os.P_ALL, 0, options) is None
            and time.monotonic() < deadline
        ):
            time.sleep(0.01)


def examine(rule: Requirement, context: Context) -> tuple[str, str, float, str]:
    """Decide one requirement: its status, a message, the seconds it took, and where in the backend it failed."""
    started, clock, cause = time.perf_counter(), time.perf_counter, ""
    try:
        _gate(rule, context)
        rule.check(context)
        status, message = Status.PASS, ""
    except (Failure, NotApplicable, NotRun) as outcome:
        status, message = _outcome(outcome, context)
        cause = _cause(outcome)
    except UsageError as error:
        status, message = Status.FAIL, plain(error)
    except BaseException as error:  # SystemExit from a plugin must not pass for an orderly end
        status, message = _blame(error)
        cause = _cause(error)
    return _WORDS[status], message, clock() - started, cause


def _outcome(outcome: Failure | NotApplicable | NotRun, context: Context) -> tuple[Status, str]:
    """What a check said by raising; a hook that raises the suite's own words for it has said nothing."""
    if isinstance(outcome, Failure):
        return Status.FAIL, plain(str(outcome))
    frame = _last(outcome.__traceback__)
    if frame is None or not (_is_own(frame) or _is_probes(frame, context)):
        return Status.FAIL, f"the backend raised the suite's own {told(outcome)}"
    return (Status.NOT_APPLICABLE if isinstance(outcome, NotApplicable) else Status.NOT_RUN), plain(
        str(outcome)
    )


def _gate(rule: Requirement, context: Context) -> None:
    """Raise `NotApplicable` or `NotRun` where the requirement cannot or need not be decided."""
    if rule.isolated is None and (rule.hooks or rule.capabilities or rule.device):
        absent = [hook for hook in rule.hooks if not context.has(hook)]
        if absent:
            raise NotApplicable(f"the backend does not implement {', '.join(absent)}")
        if rule.device and context.device_count == 0:
            raise NotRun("there is no device on this machine")
        if rule.min_devices > 1:
            if not context.manifest.indexed:
                raise NotApplicable("this backend has one device by definition")
            if context.device_count < rule.min_devices:
                raise NotRun(f"needs {rule.min_devices} devices, and there is {context.device_count}")
    unclaimed = [name for name in rule.capabilities if not context.claims(name)]
    if unclaimed:
        raise NotApplicable(f"the backend does not claim {', '.join(unclaimed)}")


def _blame(error: BaseException) -> tuple[Status, str]:
    """A failure where the plugin, or devicekit's judgement of it, raised; otherwise the check itself broke."""
    from devicekit.contract.errors import DeviceKitError

    text = told(error)
    if isinstance(error, DeviceKitError):
        return Status.FAIL, text
    frame = _last(error.__traceback__)
    where = "" if frame is None else f" at {_place(frame)}"
    own = frame is not None and _is_own(frame)
    return (Status.ERROR if own else Status.FAIL), text + where


def _cause(error: BaseException) -> str:
    """The line of the backend from which a failure comes, with the kind of its exception; empty if there is none.

    Two requirements that fail from one line of the backend fail for one cause.
    """
    try:
        origin: BaseException = error
        while isinstance(origin.__cause__, BaseException):
            origin = origin.__cause__
        frame = _last(origin.__traceback__)
        if frame is None or _is_own(frame) or _is_hosts(frame):
            return ""
        return f"{type(origin).__name__} at {_place(frame)}"
    except BaseException:  # a class that raises when it is looked at
        return ""


def _last(trace: TracebackType | None) -> TracebackType | None:
    while trace is not None and trace.tb_next is not None:
        trace = trace.tb_next
    return trace


def _place(frame: TracebackType) -> str:
    return plain(f"{frame.tb_frame.f_code.co_filename}:{frame.tb_lineno}", 300)


def _is_own(frame: TracebackType) -> bool:
    """Whether the innermost frame is the suite's own code, its faulty backends not included."""
    path = Path(frame.tb_frame.f_code.co_filename)
    return _OWN in path.parents and _OWN / "selftest" not in path.parents and path.name != "simulated.py"


def _is_probes(frame: TracebackType, context: Context) -> bool:
    """Whether the innermost frame is of the probe that was given: it may say that something cannot be seen."""
    module = frame.tb_frame.f_globals.get("__name__")
    return context.target.probe is not None and type(context.probe).__module__ == module


def _is_hosts(frame: TracebackType) -> bool:
    name = str(frame.tb_frame.f_globals.get("__name__", ""))
    return name.partition(".")[0] == "devicekit" and not name.startswith("devicekit.testing")


def _facts(context: Context) -> str:
    """What the report says of the backend, as JSON; whatever cannot be found out is left out."""
    facts: dict[str, object] = {}
    try:
        _describe(context, facts)
    except BaseException as error:  # a broken backend is described as far as it goes
        facts["error"] = told(error, _FACT_LIMIT)
    try:
        return json.dumps({key: _tamed(value) for key, value in facts.items()})
    except BaseException as error:
        return json.dumps({"error": told(error, _FACT_LIMIT)})


def _describe(context: Context, facts: dict[str, object]) -> None:
    from devicekit.registry.notices import notices

    candidate = context.candidate
    facts.update(name=candidate.name, distribution=candidate.distribution, version=candidate.version)
    manifest = context.manifest
    facts.update(
        device_type=manifest.device_type,
        capabilities=sorted(name for name in frozen_contract.CAPABILITIES if context.claims(name)),
        noop=sorted(manifest.noop),
        emulated=sorted(manifest.emulated),
        host=manifest.host,
    )
    facts["hooks"] = sorted(context.implemented)
    facts["notices"] = list(notices(context.opened))
    facts["device_count"] = context.device_count
    if context.device_count and context.has("device_properties"):
        facts["device"] = getattr(context.hook("device_properties")(0), "name", None)


def _tamed(value: object) -> object:
    if value is None or type(value) in (bool, int):
        return value
    if isinstance(value, (list, tuple)):
        return [plain(one, _FACT_LIMIT) for one in value[:100]]
    return plain(value, _FACT_LIMIT)


def main() -> None:
    """Serve in an interpreter of its own: ``python -m devicekit_conformance.worker CONNECTION LOG``."""
    connection, log = map(int, sys.argv[1:])
    serve(socket.socket(fileno=connection), log)


if __name__ == "__main__":
    main()
