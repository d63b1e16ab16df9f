"""The folder of a new backend: manifest, hooks, conformance test, waivers, continuous integration, README."""

from __future__ import annotations

import json
from collections.abc import Mapping
from importlib import resources
from pathlib import Path
from string import Template

from devicekit import __version__
from devicekit.contract.errors import ConfigurationError
from devicekit.contract.versions import CONTRACT_VERSION
from devicekit.devtools.scaffold.hooks_source import backend_source

_FILES = {
    "pyproject.toml": "pyproject.toml",
    "README.md": "README.md",
    "conformance-waivers.toml": "conformance-waivers.toml",
    "tests/test_conformance.py": "test_conformance.py",
    ".github/workflows/conformance.yml": "conformance.yml",
    "devicekit_{name}/__init__.py": "__init__.py",
    "devicekit_{name}/backend.toml": "backend.toml",
    "devicekit_{name}/conformance.toml": "conformance.toml",
}


def new_backend(name: str, folder: Path) -> tuple[Path, ...]:
    """Write a new backend's package into ``folder``, which is made.

    It stands on the simulated accelerator: it installs, the registry accepts it, and its devices work at once.

    Args:
        name: what users will write, as in ``get_device("acme:1")``: a lower-case identifier.

    Returns:
        The files written.

    Raises:
        ConfigurationError: ``name`` is no such identifier, or ``folder`` exists and is not empty.
    """
    if not name.isidentifier() or name != name.lower():
        raise ConfigurationError(
            f"A backend's name must be a lower-case identifier such as 'acme', not {name!r}."
        )
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise ConfigurationError(f"{folder} exists and is not an empty folder.")
    values = _values(name)
    texts = {path.format(name=name): _render(template, values) for path, template in _FILES.items()}
    texts[f"devicekit_{name}/backend.py"] = backend_source(values["title"])
    texts[f"devicekit_{name}/py.typed"] = ""
    for path, text in texts.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text, encoding="utf-8")
    return tuple(folder / path for path in sorted(texts))


def _values(name: str) -> Mapping[str, str]:
    from devicekit.testing import enable, sim_backend

    enable()  # what the simulated machine can do is what the manifest claims
    simulated = sim_backend.manifest()
    major, minor, *_ = __version__.split(".")
    return {
        "name": name,
        "title": name.capitalize(),
        "device_type": simulated.device_type,
        # The contract's range is what binds: every devicekit of its major version serves it.
        "devicekit": f">={major}.{minor},<{int(major) + 1}",
        "contract": f">={CONTRACT_VERSION},<{CONTRACT_VERSION.major + 1}",
        "contract_version": str(CONTRACT_VERSION),
        "noop": json.dumps(sorted(simulated.noop)),
        "capabilities": json.dumps(sorted(simulated.capabilities)),
    }


def _render(template: str, values: Mapping[str, str]) -> str:
    source = resources.files(__package__) / "templates" / f"{template}.txt"
    return Template(source.read_text(encoding="utf-8")).substitute(values)
