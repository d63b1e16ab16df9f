"""The class that a vendor subclasses to have the suite among its own tests.

::

    from devicekit.conformance import BackendConformance

    class TestAcme(BackendConformance):
        backend = "acme"                            # installed name, "package.module:Class", or the class itself
        waivers = "conformance-waivers.toml"        # optional, beside this file
"""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable
from pathlib import Path
from typing import ClassVar

import pytest

from devicekit_conformance.plugin import run_of
from devicekit_conformance.pytest_run import NOT_DISTRIBUTED, decide, is_distributed
from devicekit_conformance.rulebook import Requirement, rulebook
from devicekit_conformance.session import Session
from devicekit_conformance.target import Target

_PREFIX = "test_dk_"


class BackendConformance:
    """Every requirement as a test method. Set ``backend`` in a subclass; override nothing else."""

    __test__ = False
    backend: ClassVar[str | type]
    waivers: ClassVar[str | None] = None
    probe: ClassVar[str | None] = None

    def __init_subclass__(cls) -> None:
        super().__init_subclass__()
        overridden = sorted(
            name for name in vars(cls) if name.startswith(_PREFIX) or name == "conformance_session"
        )
        if overridden:
            raise TypeError(
                f"{cls.__name__} overrides {', '.join(overridden)}. A requirement that cannot be met yet belongs "
                "into the waiver file, with a reason and a date."
            )
        cls.__test__ = "backend" in vars(cls)

    @classmethod
    def conformance_session(cls, config: pytest.Config) -> Session:
        """This class's session in a pytest run."""
        folder = Path(inspect.getfile(cls)).parent
        waivers = folder / cls.waivers if cls.waivers else None
        return run_of(config).session(Target(_address(cls), cls.probe), waivers)


def _address(cls: type[BackendConformance]) -> str:
    """The backend as other processes find it: by name, or by the file that defines its class."""
    backend = cls.backend
    if isinstance(backend, str):
        return backend
    if not isinstance(backend, type) or "<locals>" in backend.__qualname__:
        raise pytest.UsageError(
            f"{cls.__name__}.backend must be a name, 'package.module:Class', or a class at the top of a module, "
            f"not {backend!r}: workers make their own instances."
        )
    module = sys.modules[backend.__module__]
    return f"{module.__file__}:{backend.__qualname__}"


def _method(rule: Requirement) -> Callable[[BackendConformance, pytest.FixtureRequest], None]:
    def test(self: BackendConformance, request: pytest.FixtureRequest) -> None:
        if is_distributed(request.config):
            pytest.fail(NOT_DISTRIBUTED, pytrace=False)
        decide(type(self).conformance_session(request.config), rule.id)

    test.__name__ = f"{_PREFIX}{rule.id[3:].lower().replace('-', '_')}_{rule.check.__name__}"
    test.__doc__ = rule.sentence
    marked: Callable[[BackendConformance, pytest.FixtureRequest], None] = pytest.mark.devicekit(rule.id)(test)
    return marked


for _rule in rulebook().values():
    _made = _method(_rule)
    setattr(BackendConformance, _made.__name__, _made)
