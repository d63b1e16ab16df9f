"""What a server logs for its operator: what it serves, updates of weights, and refused verbs."""

from __future__ import annotations

import logging

from devicekit import __version__
from devicekit.contract.text import human_bytes
from devicekit.engine import Engine
from devicekit.scheduling.messages import Operation, Reply, UpdateReply
from devicekit.scheduling.verbs.transaction import TransactionReply

_log = logging.getLogger(__name__)


def started(engine: Engine) -> None:
    """Log model, device, versions and how the pool of keys and values was sized."""
    plan, device = engine.plan, engine.device
    _log.info(
        "devicekit %s serves %s on %s:%d, backend %s",
        __version__,
        engine.runner.directory.path,
        device.name,
        device.index,
        device.backend.label,
    )
    if engine.runner.share is not None:
        _log.info("Split among ranks: %s", engine.runner.share)
    _log.info(
        "KV pool: %d pages of %d tokens, %s; available before: %s; up to %d requests at once",
        plan.num_pages,
        plan.page_size,
        human_bytes(plan.pool_bytes),
        human_bytes(plan.available_bytes),
        engine.config.max_running,
    )


def answered(operation: Operation, reply: Reply) -> None:
    """Log an operation that changed the weights, or that was not done."""
    name = type(operation).__name__
    if not reply.success:
        blockers = ", ".join(f"{one.name}={one.count}" for one in reply.blockers)
        kind = "failed" if reply.refusal is None else f"was refused ({reply.refusal.value})"
        _log.warning("%s %s: %s%s", name, kind, reply.message, f" [{blockers}]" if blockers else "")
    elif (update := _update_in(reply)) is not None:
        _log.info("%s done in %.3f s: %s", name, reply.seconds, update.message)
    else:
        _log.debug("%s done in %.3f s", name, reply.seconds)


def _update_in(reply: Reply) -> UpdateReply | None:
    """The answer about weights that an answer is, or that a step of it is."""
    answers = [step.reply for step in reply.steps] if isinstance(reply, TransactionReply) else [reply]
    return next((one for one in answers if isinstance(one, UpdateReply)), None)
