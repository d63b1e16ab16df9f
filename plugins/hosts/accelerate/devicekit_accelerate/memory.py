"""Emptying caches, giving things up, and finding a batch size that fits."""

from __future__ import annotations

import functools
import gc
import inspect
from collections.abc import Callable
from typing import TypeVar

import devicekit

_T = TypeVar("_T")


def clear_device_cache(garbage_collection: bool = False) -> None:
    """Empty the allocator's cache; collect garbage first if told to, which takes its time in a large process."""
    if garbage_collection:
        gc.collect()
    devicekit.current_device().release_cache()


def release_memory(*objects: object) -> list[None]:
    """As many ``None`` as there were objects, for ``a, b = release_memory(a, b)``, and the cache emptied after."""
    count = len(objects)
    del objects
    clear_device_cache(garbage_collection=True)
    return [None] * count


def should_reduce_batch_size(exception: BaseException) -> bool:
    """Whether an exception means that memory ran out, on this device or on the host."""
    if isinstance(exception, MemoryError):
        return True
    return devicekit.current_device().classify_error(exception) is devicekit.ErrorKind.OUT_OF_MEMORY


def get_max_memory(max_memory: dict[int | str, int | str] | None = None) -> dict[int | str, int | str]:
    """Free bytes by index, and of the host under "cpu", as ``device_map`` wants them. What is given is kept.

    A device whose driver does not say how much is free is left out.
    """
    if max_memory is not None:
        return max_memory
    found: dict[int | str, int | str] = {}
    backend = devicekit.get_device().name
    for index in range(devicekit.accelerator_count()):
        free = devicekit.get_device(f"{backend}:{index}").memory_info().free
        if free is not None:
            found[index] = free
    host = devicekit.get_device("cpu").memory_info().free
    if host is not None:
        found["cpu"] = host
    return found


def find_executable_batch_size(
    function: Callable[..., _T] | None = None,
    starting_batch_size: int = 128,
    reduce_batch_size_fn: Callable[[], int] | None = None,
) -> Callable[..., _T]:
    """Call a function with ever smaller batches until it does not run out of memory.

    Args:
        function: takes the batch size first; used as a decorator, called without it.
        starting_batch_size: the first to be tried.
        reduce_batch_size_fn: the next one after a failure (default: nine tenths).

    Raises:
        RuntimeError: not even a batch of one fits; the last error is its cause.
        TypeError: the batch size was passed as well.
    """
    if function is None:
        return functools.partial(  # type: ignore[return-value]  # the decorator's own form
            find_executable_batch_size,
            starting_batch_size=starting_batch_size,
            reduce_batch_size_fn=reduce_batch_size_fn,
        )
    chosen = function

    @functools.wraps(chosen)
    def search(*args: object, **kwargs: object) -> _T:
        size = starting_batch_size
        parameters = list(inspect.signature(chosen).parameters)
        if len(parameters) < len(args) + 1:
            raise TypeError(
                f"{chosen.__name__} is given its batch size; do not pass {parameters[:1]} yourself."
            )
        last: BaseException | None = None
        while size > 0:
            clear_device_cache(garbage_collection=last is not None)
            try:
                return chosen(size, *args, **kwargs)
            except Exception as error:
                if not should_reduce_batch_size(error):
                    raise
                last = error.with_traceback(None)  # its frames hold the tensors that did not fit
            size = int(size * 0.9) if reduce_batch_size_fn is None else reduce_batch_size_fn()
        raise RuntimeError("No batch size fits: not even one ran without running out of memory.") from last

    return search
