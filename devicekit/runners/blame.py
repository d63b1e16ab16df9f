"""Finds the setting of a config that an error of transformers is about: often it names the value alone."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping

from devicekit.contract.text import shown

_MOST_NAMED = 3
_LIST = re.compile(r"\[[^\]]*\]|\([^)]*\)")  # of what there is instead
_DEEPEST = 5  # parts within parts


def settings_behind(error: BaseException, document: Mapping[str, object]) -> str:
    """Each text of the config that the error names: `` ('hidden_act' = 'x' in config.json)``; empty: none."""
    message = str(error)
    alone = _LIST.sub("", message)
    named = (
        f"{shown(name)} = {shown(value)}"
        for name, value in _texts(document)
        if value and _has(message if _has(message, name.rpartition(".")[2]) else alone, value)
    )
    found = list(dict.fromkeys(named))[:_MOST_NAMED]
    return f" ({', '.join(found)} in config.json)" if found else ""


def _has(message: str, word: str) -> bool:
    return re.search(rf"(?<![\w-]){re.escape(word)}(?![\w-])", message) is not None


def _texts(document: Mapping[str, object], within: str = "") -> Iterator[tuple[str, str]]:
    for name, value in document.items():
        for one in value if isinstance(value, list) else (value,):
            if isinstance(one, dict) and within.count(".") < _DEEPEST:
                yield from _texts(one, f"{within}{name}.")
            elif isinstance(one, str):
                yield f"{within}{name}", one
