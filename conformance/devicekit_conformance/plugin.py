"""The pytest front door: ``pytest --pyargs devicekit_conformance --backend NAME``.

Loaded into every pytest run of an environment that has the suite, so it imports the standard library and pytest
only, and its short options exist only where the suite is what is being run: a vendor's own conftest may have a
``--backend`` of its own.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from devicekit_conformance.pytest_run import Run

_PACKAGE = "devicekit_conformance"
_LONG = "--devicekit-"
_OPTIONS: tuple[tuple[str, dict[str, object]], ...] = (
    (
        "backend",
        {"action": "append", "default": [], "metavar": "NAME|module:attr", "help": "backend to judge"},
    ),
    ("waivers", {"metavar": "TOML", "help": "the vendor's known failures"}),
    ("report", {"metavar": "FOLDER|FILE", "help": "write the report (JSON, HTML, JUnit, badge)"}),
    (
        "profile",
        {"action": "append", "metavar": "NAME", "help": "judge it, and core; default: all but hardware"},
    ),
    ("probe", {"metavar": "module:attr", "help": "stand-in for the suite's probe"}),
    ("patience", {"metavar": "TIMES", "help": "multiply every time limit; default: 1"}),
)
RUN: pytest.StashKey[Run] = pytest.StashKey()


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("devicekit conformance")
    for name, settings in _OPTIONS:
        group.addoption(f"{_LONG}{name}", dest=f"devicekit_{name}", **settings)


@pytest.hookimpl(wrapper=True)
def pytest_load_initial_conftests(
    early_config: pytest.Config, parser: pytest.Parser, args: list[str]
) -> Generator[None, object, object]:
    found = yield  # conftests first: a vendor's own --backend wins, and the long name remains
    if _is_about_us(args):
        group = parser.getgroup("devicekit conformance")
        taken = _options_of(parser)
        for name, settings in _OPTIONS:
            if f"--{name}" not in taken:
                group.addoption(f"--{name}", dest=f"devicekit_{name}", **settings)
    return found


def _options_of(parser: pytest.Parser) -> set[str]:
    """Every option that exists so far. argparse itself says so only by failing later, in the vendor's own run."""
    groups = [*getattr(parser, "_groups", ()), getattr(parser, "_anonymous", None)]
    return {
        name for group in groups if group is not None for option in group.options for name in option.names()
    }


def _is_about_us(args: Sequence[str]) -> bool:
    return any(one.partition("::")[0].partition(".")[0] == _PACKAGE or one.startswith(_LONG) for one in args)


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "devicekit(id): the conformance requirement that a test decides")
    # A module that is named is collected whatever the surrounding ini file says of python_files.
    config.args[:] = [f"{_PACKAGE}.test_conformance" if one == _PACKAGE else one for one in config.args]


def pytest_sessionstart(session: pytest.Session) -> None:
    config = session.config
    if any(one.startswith(_PACKAGE) for one in config.args) or config.getoption("devicekit_backend"):
        if hasattr(config, "workerinput"):
            return  # the controller has refused
        run_of(config).open_named_backends()


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(session: pytest.Session, items: list[pytest.Item]) -> None:
    if RUN in session.config.stash:
        session.config.stash[RUN].note_selection(items)
    elif hasattr(session.config, "workerinput"):
        _say_once_under_xdist(items)


def _say_once_under_xdist(items: list[pytest.Item]) -> None:
    """Leave one requirement of each class of ours in the run; it fails with one line that says why."""
    seen: set[object] = set()
    kept: list[pytest.Item] = []
    for item in items:
        owner = getattr(item, "cls", None)
        if item.get_closest_marker("devicekit") is None or owner not in seen:
            kept.append(item)
        if item.get_closest_marker("devicekit") is not None:
            seen.add(owner)
    items[:] = kept


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if (
        metafunc.module.__name__ == f"{_PACKAGE}.test_conformance"
        and "dk_requirement" in metafunc.fixturenames
    ):
        run_of(metafunc.config).parametrise(metafunc)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if RUN in config.stash:
        config.stash[RUN].summarise(terminalreporter)


@pytest.hookimpl(tryfirst=True)
def pytest_sessionfinish(session: pytest.Session) -> None:
    if RUN in session.config.stash:
        session.config.stash[RUN].finish(session)


def pytest_unconfigure(config: pytest.Config) -> None:
    if RUN in config.stash:
        config.stash[RUN].close()


def run_of(config: pytest.Config) -> Run:
    """The conformance run of this pytest session, made when something first needs it."""
    if RUN not in config.stash:
        from devicekit_conformance.pytest_run import Run

        config.stash[RUN] = Run(config)
    return config.stash[RUN]
