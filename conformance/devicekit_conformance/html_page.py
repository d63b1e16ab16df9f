from __future__ import annotations

from collections.abc import Mapping


def page(report: Mapping[str, object]) -> str:
    return "<!doctype html>"
