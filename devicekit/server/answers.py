"""JSON answers of any length. Long ones are built and written away from the event loop, piece by piece."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Callable, Iterator

from starlette.responses import JSONResponse, Response, StreamingResponse

_SHORT = 4096  # values that an answer may have to be written in one go
_PIECE = 64 << 10  # characters that are sent at once, about
_TOGETHER = 256  # items of a list


async def respond(size: int, build: Callable[[], object]) -> Response:
    """The answer that ``build`` makes.

    Args:
        size: values in it, about: numbers, texts and whatever else.
        build: called on another thread if they are many.
    """
    if size <= _SHORT:
        return JSONResponse(build())
    document = await asyncio.get_running_loop().run_in_executor(None, build)
    return StreamingResponse(pieces(document), media_type="application/json")


def pieces(document: object) -> Iterator[bytes]:
    """A document as JSON, in pieces.

    Writing a long document in one go would hold up every other thread for as long.
    """
    waiting: list[str] = []
    size = 0
    for part in _parts(document):
        waiting.append(part)
        size += len(part)
        if size >= _PIECE:
            yield "".join(waiting).encode()
            waiting, size = [], 0
    yield "".join(waiting).encode()


def _parts(node: object) -> Iterator[str]:
    if _few(node):
        yield _text(node)
    elif isinstance(node, dict):
        lead = "{"
        for key, value in node.items():
            yield f"{lead}{_text(key)}:"
            yield from _parts(value)
            lead = ","
        yield "}"
    elif isinstance(node, list | tuple):
        yield from _parts_of_list(node)
    else:
        yield _text(node)


def _parts_of_list(items: list[object] | tuple[object, ...]) -> Iterator[str]:
    lead = "["
    for at in range(0, len(items), _TOGETHER):
        part = list(items[at : at + _TOGETHER])
        if _few(part):
            yield lead + _text(part)[1:-1]
            lead = ","
            continue
        for one in part:
            yield lead
            yield from _parts(one)
            lead = ","
    yield "]"


def _few(node: object) -> bool:
    """Whether a value is small enough to be written in one go."""
    waiting, count = [node], 0
    while waiting:
        one = waiting.pop()
        count += 1
        if isinstance(one, dict):
            waiting.extend(one.values())
        elif isinstance(one, list | tuple):
            if len(one) > _SHORT:
                return False
            waiting.extend(one)
        if count + len(waiting) > _SHORT:
            return False
    return True


def _text(node: object) -> str:
    return json.dumps(node, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
