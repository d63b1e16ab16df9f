"""How memory is divided between layers that keep every page and layers that look back only so far."""

from __future__ import annotations

from dataclasses import replace

from devicekit.contract.errors import ConfigurationError
from devicekit.memory.kv import KVLayout
from devicekit.memory.sizing import KVPlan

_SPARE = 2  # how many times what running requests pin: the rest keeps cached prefixes usable


def pages_in_reach(window: int, page_size: int, chunk: int = 1) -> int:
    """Window pages that ``chunk`` consecutive tokens read or write, wherever they begin."""
    return -(-(window - 1 + chunk) // page_size) + 1


def least_window_pages(window: int, page_size: int, max_batch_tokens: int) -> int:
    """Window pages that one long prompt behind a cached prefix needs to run at all."""
    return pages_in_reach(window, page_size, max_batch_tokens) + pages_in_reach(window, page_size)


def plan_paired(
    plan: KVPlan,
    layout: KVLayout,
    *,
    max_batch_tokens: int,
    max_tokens: int | None = None,
    window_tokens: int | None = None,
) -> KVPlan:
    """Give layers with a window a pool of their own, if it was asked for or leaves more pages to the others.

    Args:
        plan: for one pool of all layers.
        max_tokens: bounds the pool of the other layers.
        window_tokens: size of the windowed layers' pool; default: twice what ``max_running`` requests look at.

    Returns:
        ``plan`` itself where a second pool would be no smaller than the first, or all that may be used fits one.

    Raises:
        ConfigurationError: ``window_tokens`` do not let one request run.
    """
    window = layout.partial_window
    size = plan.page_size
    most = None if max_tokens is None else -(-max_tokens // size)
    if window is None or (window_tokens is None and plan.num_pages == most):
        return plan
    least = least_window_pages(window, size, max_batch_tokens)
    if window_tokens is None:
        running = plan.max_running * pages_in_reach(window, size) + -(-max_batch_tokens // size)
        count = max(least, _SPARE * running)
    else:
        count = -(-window_tokens // size)
    windowed = layout.windowed_layers * layout.bytes_per_token_and_layer * size
    kept = plan.page_bytes - windowed
    if plan.usable_bytes is not None:
        fitting = (plan.usable_bytes - plan.table_bytes - (count + 1) * windowed) // kept - 1
        most = fitting if most is None else min(most, fitting)
    if most is None or most <= count:
        return plan
    if count < least:
        raise ConfigurationError(
            f"layers with a window of {window} tokens need {least * size} tokens of KV with passes of up to "
            f"{max_batch_tokens}, not {window_tokens}"
        )
    pool_bytes = (most + 1) * kept + (count + 1) * windowed
    usable = plan.usable_bytes
    return replace(
        plan,
        bytes_per_token=kept // size,
        page_bytes=kept,
        num_pages=most,
        window_pages=count,
        window_page_bytes=windowed,
        pool_bytes=pool_bytes,
        unused_bytes=None if usable is None else usable - plan.table_bytes - pool_bytes,
    )
