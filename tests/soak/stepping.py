"""Steps the engine, and holds what comes out against what was asked: requests, answers, times and weights."""

from __future__ import annotations

from devicekit.scheduling.messages import Operation, Output, Reply, UpdateWeights
from devicekit.scheduling.request import FinishKind
from devicekit.scheduling.scheduler import Step
from devicekit.scheduling.verbs.transaction import Transaction
from devicekit.weights.operations import CommitWeights
from tests.soak.answers import aborts, answered, check_weights, in_time
from tests.soak.shadow import Book
from tests.soak.world import Detokenizer, Posted, World


def step(world: World) -> Step:
    """One step of the scheduler, and everything that must hold of what came out of it."""
    state, now = world.state, world.clock.now()
    failed = world.runner.failed
    world.runner.before = None
    if state.gate.closed_by:
        world.runner.before = {one.id for one in (*state.running.requests, *state.prefilling)}
    for one in world.posted.values():
        if not one.taken:
            one.taken, one.at = True, now  # its time begins now
    for identity in world.sent:  # and theirs
        book = world.books[identity]
        book.deadline = None if book.request.timeout is None else now + book.request.timeout
    world.arriving = {*world.sent}
    world.transacting = sum(isinstance(one.operation, Transaction) for one in world.posted.values()) > 1
    due = state.gate.continue_at
    if due is not None and (now < due or state.gate.holds):
        due = None
    waiting = _first_update(world)
    aborting = [*world.begun, *(one.operation for one in world.posted.values())]
    done = world.scheduler.step()
    world.steps += 1
    world.sent.clear()
    world.begun.clear()
    for output in done.outputs:
        _listen(world, output, now, aborting, world.runner.failed > failed)
    for reply in done.replies:
        answered(world, reply)
    for identity in [*world.polls]:
        poll(world, world.posted[identity].operation)
    in_time(world, now)
    if waiting in world.posted:
        world.wrong.append(f"{waiting} waits, and no request holds what it would write under")
    if due is not None and state.paused and state.gate.continue_at == due and not state.gate.holds:
        world.wrong.append(f"nobody continued at {now:g}, as was asked for at {due:g}")
    if done.replies:
        check_weights(world)
    return done


def _first_update(world: World) -> str | None:
    """The update that nothing keeps from being written: no request holds KV, and no other one came before."""
    pending = [one.operation for one in world.posted.values()]
    if world.state.requests.holding_kv or any(isinstance(one, Transaction) for one in pending):
        return None
    plain = (one for one in pending if isinstance(one, UpdateWeights) and not isinstance(one, CommitWeights))
    return next((one.id for one in plain if one.id not in world.polls), None)


def begin(world: World, operation: Operation) -> Reply | None:
    """Begin an operation between two steps. ``None``: `poll` asks for its answer, and so does every `step`."""
    world.posted[operation.id] = Posted(
        operation, world.clock.now(), world.work.flushes, world.noted, taken=True
    )
    world.operations += 1
    world.begun.append(operation)
    answer = world.scheduler.control.begin(operation)
    if not isinstance(answer, Reply):
        world.polls[operation.id] = answer
        return None
    answered(world, answer)
    check_weights(world)
    return answer


def poll(world: World, operation: Operation) -> Reply | None:
    """Ask for the answer to an operation that was begun between two steps."""
    reply = world.polls[operation.id]()
    if reply is not None:
        del world.polls[operation.id]
        world.begun.append(operation)
        answered(world, reply)
        check_weights(world)
    return reply


# -- Requests -----------------------------------------------------------------------------------------------------


def _listen(world: World, output: Output, now: float, aborting: list[Operation], failed: bool) -> None:
    book = world.books.get(output.id)
    if book is None:
        world.wrong.append(f"{output.id} was answered and nobody asked")
        return
    if book.finish is not None:
        world.wrong.append(f"{output.id} was told something after its end")
        return
    made = book.output
    told = list(output.tokens)
    if told != made[book.reported : book.reported + len(told)]:
        world.wrong.append(f"{output.id} was told {told}, and {made[book.reported :]} were made for it")
    book.reported += len(told)
    if output.finish is None and not (book.stream and told):
        world.wrong.append(f"{output.id} does not stream, or was told nothing new")
    if output.output_tokens != len(made) or output.prompt_tokens != book.prompt:
        world.wrong.append(f"{output.id} is miscounted: {output}")
    if book.params.logprobs is not None and [one.token for one in output.logprobs] != told:
        world.wrong.append(f"{output.id} has log-probabilities of other tokens: {output}")
    if output.finish is not None:
        book.finish = output.finish
        world.seen[f"ended_{output.finish.kind.value}"] += 1
        _ended(world, book, output, now, aborting, failed)


def _ended(
    world: World, book: Book, output: Output, now: float, aborting: list[Operation], failed: bool
) -> None:
    made, finish, wrong = book.output, book.finish, world.wrong
    assert finish is not None
    identity = output.id
    if book.reported != len(made):
        wrong.append(f"{identity} lost tokens: {book.reported} of {len(made)} were handed out")
    if [0, *(span.end for span in output.spans)] != [*(span.start for span in output.spans), len(made)]:
        wrong.append(f"{identity} has spans with holes: {output.spans}")
    named = [span.version for span in output.spans for _ in range(span.start, span.end)]
    if named != book.versions:
        wrong.append(f"{identity} was made by {book.versions}, and told {named}")
    if len({*book.versions}) > 1:
        world.seen["ended_with_tokens_of_several_versions"] += 1
    room = min(world.make.positions, world.make.pages * world.make.page_size + 1)
    limit = min(book.params.max_new_tokens, room - book.prompt)
    stops = _stops(world, book)
    kind = finish.kind
    if (kind is FinishKind.STOP) != (stops == len(made) > 0) or (stops and stops < len(made)):
        wrong.append(f"{identity} ended by {finish}, and should stop at {stops} of {len(made)} tokens")
    if kind is FinishKind.LENGTH and len(made) != limit:
        wrong.append(f"{identity} ended at length {len(made)}, not {limit}")
    if book.sound and len(made) > limit:
        wrong.append(f"{identity} went on to {len(made)} tokens; {limit} were to come")
    if kind is FinishKind.ABORT and not (
        (book.deadline is not None and now >= book.deadline) or any(aborts(one, identity) for one in aborting)
    ):
        wrong.append(f"{identity} was aborted and nobody wanted it: {finish.message}")
    if kind is FinishKind.ERROR and book.sound and not failed and world.state.healthy:
        wrong.append(f"{identity} ended in an error without a fault: {finish.message}")
    if not book.sound and kind is not FinishKind.ERROR:
        wrong.append(f"{identity} can never run, and ended by {finish}")


def _stops(world: World, book: Book) -> int:
    """After how many output tokens it should stop; 0: none of them is a reason."""
    params, made = book.params, book.output
    ends = {*params.stop_token_ids, *(() if params.ignore_eos else world.make.eos)}
    text = Detokenizer().decode(made)
    first = max(0, params.min_new_tokens - 1)  # the text before is not searched
    for at in range(max(1, params.min_new_tokens), len(made) + 1):
        if made[at - 1] in ends or any(one in text[first:at] for one in params.stop):
            return at
    return 0
