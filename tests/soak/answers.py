"""Holds answers to operations against what was asked: each once, in time, with a reason, and true."""

from __future__ import annotations

from collections import Counter

from devicekit.scheduling.messages import (
    Abort,
    Drain,
    Flush,
    FlushReply,
    Operation,
    Pause,
    PauseMode,
    Refusal,
    Reply,
    Selector,
    UpdateOutcome,
    UpdateReply,
    UpdateWeights,
)
from devicekit.scheduling.verbs.transaction import Settle, Transaction, TransactionReply
from devicekit.weights.operations import (
    BeginWeightUpdate,
    CommitWeights,
    DiscardWeights,
    EndWeightUpdate,
    MemoryReply,
    PreparedReply,
    PrepareWeights,
    ReleaseMemory,
    UpdateWeightVersion,
    VersionReply,
)
from tests.hash_runner import make_weights, salt_of
from tests.soak.shadow import may_run
from tests.soak.world import ALIASES, ANY, Posted, World

# May be answered later.
_WAITING = (Drain, UpdateWeights, BeginWeightUpdate, Transaction, PrepareWeights, DiscardWeights)
_NAMES = sorted(make_weights(0))
_salts: dict[tuple[int, ...], int] = {}


def answered(world: World, reply: Reply) -> None:
    """An operation has been answered."""
    posted = world.posted.pop(reply.id, None)
    if posted is None:
        world.wrong.append(f"{reply.id} was answered twice, or was never asked")
        return
    world.kept.pop(reply.id, None)
    kind = type(posted.operation).__name__
    world.seen[f"{kind}_{reply.refusal.value if reply.refusal else 'done'}"] += 1
    if reply.success != (reply.refusal is None):
        world.wrong.append(f"an answer that is neither yes nor no: {reply}")
    _legal(world, posted.operation, reply)
    if isinstance(reply, FlushReply) and not reply.blockers and world.work.flushes == posted.flushes:
        world.wrong.append(f"{reply.id} says that it flushed, and nobody was asked to forget anything")
    noted = world.noted
    _note(world, posted.operation, reply, world.content.pop(reply.id, {}))
    if isinstance(reply, TransactionReply) and noted not in (posted.noted, world.noted):
        world.version = None  # others were answered between its update and its end: who came last?
        world.commit_unknown = True
        for key, seed in world.truth.items():
            world.truth[key] = None if seed is None else ANY


def _legal(world: World, operation: Operation, reply: Reply) -> None:
    """A conflict has a reason, and what was asked for is done."""
    conflict = reply.refusal is Refusal.CONFLICT
    others = [one for one in world.posted.values() if isinstance(one.operation, Transaction)]
    if isinstance(operation, Transaction) and not isinstance(reply, TransactionReply):
        if conflict and not others and not world.transacting:
            world.wrong.append(f"{reply.id} was refused for another transaction, and there is none")
    elif isinstance(operation, BeginWeightUpdate | EndWeightUpdate):
        begins = isinstance(operation, BeginWeightUpdate)
        if conflict != (begins == world.session):
            world.wrong.append(f"{operation} was answered by {reply}, and a session is open: {world.session}")
        world.session = begins or (conflict and world.session)
    elif isinstance(operation, Abort) and reply.success:
        left = [one for one in world.state.requests if aborts(operation, one) and one not in world.arriving]
        if left:
            world.wrong.append(f"{operation} left {left}")


def in_time(world: World, now: float) -> None:
    """Nobody waits longer than they said, nor for what needs no waiting."""
    for one in world.posted.values():
        operation = one.operation
        if one.taken and _late(operation, one, now):
            world.wrong.append(f"{operation} of {one.at:g} is not answered at {now:g}")
    for identity in world.state.requests:
        deadline = world.books[identity].deadline
        if deadline is not None and now >= deadline:
            world.wrong.append(f"{identity} runs on after its deadline of {deadline:g}, at {now:g}")


def _late(operation: Operation, one: Posted, now: float) -> bool:
    if isinstance(operation, _WAITING):
        timeout = operation.timeout if isinstance(operation, Drain) else None
        return timeout is not None and now >= one.at + timeout
    if isinstance(operation, Flush) and operation.timeout is not None:
        return now >= one.at + operation.timeout
    return True


# -- Weights ------------------------------------------------------------------------------------------------------


def _note(world: World, operation: Operation, reply: Reply, content: dict[str, int]) -> None:
    """What an answer says became of the weights."""
    if isinstance(reply, TransactionReply):
        for one in reply.steps:
            if isinstance(operation, Transaction) and operation.update is not None:
                _note(world, operation.update, one.reply, content)
    elif isinstance(reply, PreparedReply):
        if isinstance(operation, PrepareWeights) and reply.success:
            world.prepared[operation.update_id] = content
        elif isinstance(operation, DiscardWeights) and reply.success:
            world.prepared.pop(operation.update_id, None)
    elif isinstance(operation, CommitWeights):
        _note_commit(world, operation, reply)
    elif isinstance(reply, UpdateReply) and isinstance(operation, UpdateWeights):
        _note_update(world, operation, reply, content)
    elif isinstance(reply, VersionReply):
        world.noted += 1
        world.version = reply.weight_version
    elif isinstance(reply, MemoryReply) and isinstance(operation, ReleaseMemory):
        gone = [one for one in reply.regions if one.tag == "weights" and one.changed and not one.backup_bytes]
        if gone:
            world.noted += 1
            world.truth = dict.fromkeys(world.truth)
        world.seen.update(Counter(f"released_{one.tag}" for one in reply.regions if one.changed))


def _note_update(world: World, operation: UpdateWeights, reply: UpdateReply, content: dict[str, int]) -> None:
    world.seen[f"weights_{reply.outcome.value}"] += 1
    if reply.outcome is UpdateOutcome.UNCHANGED:
        world.seen["weights_taken_back"] += "was taken back" in reply.message
        return
    world.changes += 1
    world.noted += 1
    world.version = reply.weight_version
    for name, seed in content.items():
        for kind in (Selector.TARGET, Selector.DRAFT):
            key = (kind, ALIASES.get(name, name) if kind is Selector.TARGET else name)
            if operation.selector in (Selector.ALL, kind) and key in world.truth:
                # Of weights that were written in part, those that were not reached are what they were.
                partial = reply.outcome is UpdateOutcome.PARTIAL
                if not partial or key in world.control.store.untrusted:
                    world.truth[key] = None if partial else seed


def _note_commit(world: World, operation: CommitWeights, reply: Reply) -> None:
    """What was prepared under that name is written, or used up; twice is once, while the weights are the same."""
    content = world.prepared.pop(operation.update_id, None)
    written = isinstance(reply, UpdateReply) and reply.outcome is not UpdateOutcome.UNCHANGED
    now = operation.update_id, world.changes, world.version
    if content is None:
        world.seen["commits_repeated"] += written
        if written and world.committed != now and not world.commit_unknown:
            world.wrong.append(f"{operation} of nothing that is prepared was answered by {reply}")
    elif isinstance(reply, UpdateReply):
        _note_update(world, operation, reply, content)
        if written:
            world.committed = operation.update_id, world.changes, world.version
            world.commit_unknown = False


def check_weights(world: World) -> None:
    """The weights are what the answers said, and so are their name and what cannot be trusted."""
    state, store, wrong = world.state, world.control.store, world.wrong
    busy = any(isinstance(one.operation, Transaction) for one in world.posted.values())
    if state.requests.weights_epoch < world.changes or (
        not busy and state.requests.weights_epoch > world.changes
    ):
        wrong.append(f"weights epoch {state.requests.weights_epoch} after {world.changes} changes")
    if busy:
        return
    if world.version not in (None, state.weight_version):
        wrong.append(f"the weights are called {state.weight_version}, and answers said {world.version}")
    if store.released:
        return
    unknown = {key for key, seed in world.truth.items() if seed is None}
    unsure = {key for key, seed in world.truth.items() if seed == ANY}
    if not unknown - unsure <= store.untrusted <= unknown | unsure:
        wrong.append(f"untrusted are {sorted(store.untrusted)}, and should be {sorted(unknown)}")
    if unknown and may_run(state):
        wrong.append(f"generation may go on without {sorted(unknown)}")
    if world.calm and not (unknown or unsure) and salt_of(world.runner.weights) != _salt(world):
        wrong.append(f"the weights are not what the answers said: {world.truth}")


def _salt(world: World) -> int:
    seeds = tuple(world.truth[Selector.TARGET, name] or 0 for name in _NAMES)
    if seeds not in _salts:
        _salts[seeds] = salt_of(
            {name: make_weights(seed)[name] for name, seed in zip(_NAMES, seeds, strict=True)}
        )
    return _salts[seeds]


def aborts(operation: Operation, identity: str) -> bool:
    """Whether an operation may end this request."""
    match operation:
        case Abort(_, request_id, prefix, everything):
            return everything or identity == request_id or (bool(prefix) and identity.startswith(str(prefix)))
        case Pause(_, mode):
            return mode is PauseMode.ABORT
        case UpdateWeights() | UpdateWeightVersion():
            return operation.abort_all_requests
        case Transaction():
            update = operation.update
            return operation.settle is Settle.ABORT or (update is not None and update.abort_all_requests)
    return False
