"""Tries a vendor's device in a process of its own, so that a new package can say what was seen of it."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import textwrap
from dataclasses import dataclass

from devicekit.contract.errors import ConfigurationError

_SECONDS = 300.0  # a driver that compiles its kernels on first use takes a minute
_TRIAL = """
import importlib, json, sys
package, module = sys.argv[1:]
importlib.import_module(package)
from devicekit.device import generic
from devicekit.torchlike.generic import seen_here
findings = seen_here(module)
made = generic.backend_class(module, findings)
told = {name: getattr(findings, name) for name in findings.__slots__}
print(json.dumps({
    "findings": {name: sorted(one) if isinstance(one, frozenset) else one for name, one in told.items()},
    "claims": sorted(made.manifest.capabilities),
}))
"""


@dataclass(frozen=True, slots=True)
class Seen:
    """What was seen of a device.

    Attributes:
        source: Python that makes the `devicekit.torchlike.Findings`.
        claims: capabilities that it was seen to have, and whose hooks are there.
    """

    source: str
    claims: frozenset[str]


def seen(module: str, package: str) -> Seen:
    """What ``torch.<module>`` does on this machine.

    Args:
        package: what to import, so that torch has the module.

    Raises:
        ConfigurationError: it cannot be imported, or there is no device; the text is what was said.
    """
    if re.fullmatch(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", package) is None:
        raise ConfigurationError(f"A package to import is written as in Python, not {package!r}.")
    try:
        done = subprocess.run(
            [sys.executable, "-c", _TRIAL, package, module],
            capture_output=True,
            text=True,
            timeout=_SECONDS,
            check=False,
        )
    except subprocess.TimeoutExpired:
        raise ConfigurationError(
            f"torch.{module} was tried, and gave no answer within {_SECONDS:g} s."
        ) from None
    lines = done.stdout.strip().splitlines()
    if done.returncode != 0 or not lines:
        *_, said = done.stderr.strip().splitlines() or [f"exit status {done.returncode}"]
        raise ConfigurationError(f"torch.{module} cannot be tried with {package}: {said}")
    told = json.loads(lines[-1])
    if not told["claims"]:
        raise ConfigurationError(
            f"torch.{module} was tried with {package}, and showed nothing: is there a device on this machine?"
        )
    return Seen(_source(told["findings"]), frozenset(told["claims"]))


def _source(findings: dict[str, list[str] | bool]) -> str:
    shown = "".join(f"    {name}={_python(value)},\n" for name, value in findings.items() if value)
    return f"Findings(\n{shown})"


def _python(value: list[str] | bool) -> str:
    if isinstance(value, bool):
        return str(value)
    quoted = ", ".join(f'"{one}"' for one in value)
    if len(quoted) < 80:
        return f"frozenset([{quoted}])"
    wrapped = textwrap.fill(f"{quoted},", 100, initial_indent=" " * 12, subsequent_indent=" " * 12)
    return f"frozenset(\n        [\n{wrapped}\n        ]\n    )"
