"""Tries a vendor's device in a process of its own, so that a new package can say what was seen of it."""

from __future__ import annotations

import re
import textwrap
from dataclasses import dataclass
from typing import Any, cast

from devicekit.contract.errors import ConfigurationError
from devicekit.fresh_python import NoAnswer, ask_fresh_python

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
        told = cast("dict[str, Any]", ask_fresh_python(_TRIAL, package, module, seconds=_SECONDS))
    except NoAnswer as error:
        raise ConfigurationError(f"torch.{module} cannot be tried with {package}: {error}") from None
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
