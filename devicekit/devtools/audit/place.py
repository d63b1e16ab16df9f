"""Where an expression stands: what decides whether it can be replaced."""

from __future__ import annotations

from dataclasses import dataclass

from devicekit.devtools.audit.names import Scope


@dataclass(frozen=True, slots=True)
class Place:
    """What surrounds an expression."""

    scope: Scope
    runs: bool = False  # in a function that the module does not call itself, or below "if __name__"
    frozen: bool = False  # a decorator, a default or a base class: evaluated once, when a definition is read
    compiled: bool = False  # in a function that a compiler reads
    annotation: bool = False
    formatted: bool = False  # inside an f-string
    switched: bool = False  # below "with torch.cuda.device(...)": the current device is another
    assigned: str = ""  # the name or keyword that receives the value
    told: bool = (
        False  # assigned to something of another object, or to what is expected: not there to be used
    )
    named: bool = False  # in a class or function that is itself named after a vendor
    apart: bool = False  # in a file, class or function for one vendor beside others: see `words.is_apart`
    caught: bool = False  # where an error is caught, as that of torch where such a device is missing
    setting: bool = False  # what a function takes that only sets something for a type of device
    device: str = ""  # a parameter that is a Device
