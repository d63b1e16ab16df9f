"""Asks a loaded plugin whether its hardware is there, with a time limit and without trusting the answer."""

from __future__ import annotations

import os
import threading
from dataclasses import dataclass

from devicekit.contract.errors import BackendLoadError, ConfigurationError
from devicekit.contract.text import shown
from devicekit.registry.opened import OpenedBackend

DEFAULT_TIMEOUT = 20.0  # seconds; a cold driver on a many-device node answers within ten


@dataclass(frozen=True, slots=True)
class Probe:
    """What a backend has answered about its hardware."""

    available: bool
    device_count: int


class _Asked(threading.local):
    """The backend whose probe this thread runs, if any."""

    label: str | None = None


_asked = _Asked()


def probe(backend: OpenedBackend) -> Probe:
    """Call ``is_available`` and ``device_count`` in a thread of their own.

    Asked anew until the backend's first device is opened, because what is visible may change until then. A probe
    that did not return is not repeated: each try would leave another thread stuck in the driver.

    Raises:
        BackendLoadError: a call raised, did not return in time, or contradicted the contract.
    """
    if backend.device_count is not None:
        return Probe(True, backend.device_count)
    if backend.hung is not None:
        raise backend.hung.with_traceback(None)
    limit = probe_timeout()
    answer: list[object] = []
    failure: list[BaseException] = []

    def ask() -> None:
        _asked.label = backend.label
        try:
            is_available, device_count = backend.function("is_available"), backend.function("device_count")
            if is_available is None or device_count is None:
                raise BackendLoadError(f"Backend {backend.label} has no probe.", backend=backend.name)
            available = is_available()
            answer.extend((available, device_count() if available is True else 0))
        except BaseException as error:  # SystemExit from a driver wrapper must not end the host
            failure.append(error)

    thread = threading.Thread(target=ask, name=f"devicekit-probe-{backend.name}", daemon=True)
    thread.start()
    thread.join(limit)
    if failure:
        cause = failure[0]
        raise BackendLoadError(
            f"Backend {backend.label} failed while looking for its hardware: {type(cause).__name__}: {cause}",
            backend=backend.name,
        ) from cause
    if len(answer) < 2:
        backend.hung = BackendLoadError(
            f"Backend {backend.label} did not answer is_available() and device_count() within {limit:g} s. "
            "A longer limit can be set in DEVICEKIT_PROBE_TIMEOUT.",
            backend=backend.name,
        )
        raise backend.hung
    return _checked(backend, *answer)


def refuse_inside_probe() -> None:
    """Raise `BackendLoadError` in a thread that runs a probe: the choice would wait for itself."""
    if _asked.label is not None:
        raise BackendLoadError(
            f"Backend {_asked.label} asked devicekit for a device while it was being probed. "
            "is_available() and device_count() must not select or open a backend."
        )


def _checked(backend: OpenedBackend, available: object, count: object) -> Probe:
    if type(available) is not bool or type(count) is not int or count < 0 or (available and count == 0):
        raise BackendLoadError(
            f"Backend {backend.label} contradicts the contract: is_available() returned {shown(available)} and "
            f"device_count() {shown(count)}; a bool and a matching count of devices are expected.",
            backend=backend.name,
        )
    return Probe(available, count)


def probe_timeout() -> float:
    """Seconds a probe may take.

    Raises:
        ConfigurationError: DEVICEKIT_PROBE_TIMEOUT is not a positive number.
    """
    text = os.environ.get("DEVICEKIT_PROBE_TIMEOUT")
    if text is None:
        return DEFAULT_TIMEOUT
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not 0 < seconds < threading.TIMEOUT_MAX:
        raise ConfigurationError(
            f"DEVICEKIT_PROBE_TIMEOUT must be a positive number of seconds, not {shown(text)}."
        )
    return seconds
