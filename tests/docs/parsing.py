"""The commands' own argument parsers, without what the commands do."""

from __future__ import annotations

import argparse
import contextlib
from collections.abc import Sequence
from unittest import mock

from devicekit.cli import main


class Parsed(BaseException):
    """The parser took the arguments. Not an Exception, so that no command catches it."""

    def __init__(self, parser: argparse.ArgumentParser, options: argparse.Namespace) -> None:
        super().__init__()
        self.parser = parser
        self.options = options


def parse(arguments: Sequence[str]) -> Parsed:
    """What ``devicekit ARGUMENTS`` parses to.

    Raises:
        SystemExit: the parser refuses the arguments.
    """
    original = argparse.ArgumentParser.parse_args

    def parse_args(self: argparse.ArgumentParser, *given: object, **more: object) -> argparse.Namespace:
        raise Parsed(self, original(self, *given, **more))  # type: ignore[call-overload]  # as they were given

    with mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args):
        try:
            status = main(list(arguments))
        except Parsed as parsed:
            return parsed
    raise SystemExit(status)


def parser_of(command: str) -> argparse.ArgumentParser:
    """The parser of one command."""
    found: list[argparse.ArgumentParser] = []

    def parse_args(self: argparse.ArgumentParser, *given: object, **more: object) -> argparse.Namespace:
        found.append(self)
        raise Parsed(self, argparse.Namespace())

    with (
        mock.patch.object(argparse.ArgumentParser, "parse_args", parse_args),
        contextlib.suppress(Parsed),
    ):
        main([command])
    return found[0]
