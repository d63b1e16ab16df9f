"""The process in which a backend is imported and tried. It may hang, crash or be killed; the judge outlives it."""

from __future__ import annotations

import json
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

from devicekit_conformance import frozen_contract
from devicekit_conformance.context import Context, Failure, NotApplicable, NotRun
from devicekit_conformance.outcomes import Status
from devicekit_conformance.rulebook import Requirement, rulebook
from devicekit_conformance.target import Target, UsageError


def serve(connection: socket.socket, log: int, order: Mapping[str, object]) -> None:
    """Answer requests, one JSON line each, until the judge closes the connection.

    Args:
        log: file descriptor that takes over standard output and error.
        order: the judge's ``target`` (address, probe), ``path`` (its sys.path) and ``folder`` (its working one).
    """
    os.dup2(log, 1)
    os.dup2(log, 2)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the judge decides when this ends
    path = order["path"]
    if isinstance(path, list):
        sys.path[:] = [*path, *(one for one in sys.path if one not in path)]
    os.chdir(str(order["folder"]))
    stream = connection.makefile("rw", encoding="utf-8")
    target = order["target"]
    address, probe = target if isinstance(target, list) else (str(target), None)
    context = Context(Target(address, probe), lambda text: _send(stream, {"note": text}))
    _send(stream, {"pid": os.getpid()})
    rules = rulebook()
    for line in stream:
        request = json.loads(line)
        if request == "facts":
            _send(stream, _facts(context))
        else:
            _send(stream, examine(rules[request], context))


def examine(rule: Requirement, context: Context) -> dict[str, object]:
    """Decide one requirement: its status, a message and the seconds it took."""
    started = time.perf_counter()
    try:
        _gate(rule, context)
        rule.check(context)
        status, message = Status.PASS, ""
    except Failure as failure:
        status, message = Status.FAIL, str(failure)
    except NotApplicable as reason:
        status, message = Status.NOT_APPLICABLE, str(reason)
    except NotRun as reason:
        status, message = Status.NOT_RUN, str(reason)
    except UsageError as error:
        status, message = Status.FAIL, str(error)
    except BaseException as error:  # SystemExit from a plugin must not pass for an orderly end
        status, message = _blame(error)
    return {
        "id": rule.id,
        "status": status.value,
        "message": message,
        "seconds": round(time.perf_counter() - started, 4),
    }


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

    text = f"{type(error).__name__}: {error}"
    if isinstance(error, DeviceKitError):
        return Status.FAIL, text
    frames = traceback.extract_tb(error.__traceback__)
    own = Path(__file__).parent
    parents = Path(frames[-1].filename).parents if frames else ()
    if own in parents and own / "selftest" not in parents:
        return Status.ERROR, f"{text} at {Path(frames[-1].filename).name}:{frames[-1].lineno}"
    where = f" at {frames[-1].filename}:{frames[-1].lineno}" if frames else ""
    return Status.FAIL, text + where


def _facts(context: Context) -> dict[str, object]:
    """What the report says of the backend; whatever cannot be found out is left out."""
    facts: dict[str, object] = {}
    try:
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
        facts["device_count"] = context.device_count
        if context.device_count and context.has("device_properties"):
            facts["device"] = getattr(context.hook("device_properties")(0), "name", None)
    except BaseException as error:  # a broken backend is described as far as it goes
        facts["error"] = f"{type(error).__name__}: {error}"
    return facts


def _send(stream: TextIO, message: Mapping[str, object]) -> None:
    stream.write(json.dumps(message) + "\n")
    stream.flush()


def main() -> None:
    """Serve in an interpreter of its own: ``python -m devicekit_conformance.worker SOCKET LOG ORDER``."""
    connection, log, order = sys.argv[1:]
    serve(socket.socket(fileno=int(connection)), int(log), json.loads(order))


if __name__ == "__main__":
    main()
