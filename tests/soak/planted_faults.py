"""The faults that are planted: each a mistake somebody could make, in one place, against one law.

I1 to I12 are the invariants that the report lists.
"""

from __future__ import annotations

import ast
from typing import NamedTuple


class Fault(NamedTuple):
    """In ``file`` of the package, ``old`` becomes ``new``, in the text that `canonical` makes of it."""

    law: str
    name: str
    file: str
    old: str
    new: str


def canonical(text: str) -> str:
    """Source without what means nothing: comments, line breaks, quotes and brackets of one's choice."""
    return ast.unparse(ast.parse(text))


_FLUSH, _PAUSE, _STATE = "scheduling/verbs/flush.py", "scheduling/verbs/pause.py", "scheduling/state.py"
_REQUESTS, _GATE, _DEADLINES = "scheduling/requests.py", "scheduling/gate.py", "scheduling/deadlines.py"
_CONTROL, _PARTS = "scheduling/verbs/control.py", "scheduling/participants.py"
_KV, _TIER = "scheduling/kv_cache/manager.py", "scheduling/kv_cache/host_cache.py"
_SCHEDULER, _OCCUPATION = "scheduling/scheduler.py", "weights/occupation.py"

FAULTS: tuple[Fault, ...] = (
    Fault(
        "I1",
        "a refused flush forgets what nobody uses",
        _FLUSH,
        "    if blockers:\n",
        "    if blockers:\n        state.kv.prefix and state.kv.prefix.evict(1)\n",
    ),
    Fault(
        "I1",
        "a flush whose time is up flushes all the same",
        _FLUSH,
        "        self._waiting.remove(waiter)\n",
        "        self._waiting.remove(waiter)\n        self._state.participants.flush()\n",
    ),
    Fault(
        "I1",
        "a refused release lets go of something",
        _OCCUPATION,
        "        if blockers:\n",
        "        if blockers:\n            self._hold.hold('soon')\n",
    ),
    Fault(
        "I2",
        "a flush does not see the work of participants",
        _STATE,
        "        counts += [(part.name, self.participants.pending(part))",
        "        _ = [(part.name, self.participants.pending(part))",
    ),
    Fault(
        "I2",
        "a flush does not see waiting requests",
        _STATE,
        "len(requests.waiting) if gate.may_run and gate.admitting else 0",
        "0",
    ),
    Fault(
        "I2",
        "a flush forgets to tell participants",
        _PARTS,
        "        for part in self._all:\n            try:",
        "        for part in ():\n            try:",
    ),
    Fault(
        "I2",
        "a flush leaves what is on the host",
        _TIER,
        "        self._tree.reset()\n\n    def release",
        "\n    def release",
    ),
    Fault(
        "I2", "a flush leaves the prefixes", _KV, "            self.prefix.reset()\n", "            pass\n"
    ),
    Fault(
        "I3",
        "an answer is given twice",
        _CONTROL,
        "                self._reply(one.operation, reply, one.arrived)\n",
        "                self._reply(one.operation, reply, one.arrived)\n" * 2,
    ),
    Fault(
        "I3",
        "one of several waiting operations is forgotten",
        _CONTROL,
        "            if reply is None:\n                self._pending.append(one)\n",
        "            if reply is None:\n                self._pending = self._pending[-1:] + [one]\n",
    ),
    Fault(
        "I3",
        "a message is lost when several come at once",
        _SCHEDULER,
        "            message = self._inbox.popleft()\n",
        "            message = self._inbox.popleft()\n"
        "            if len(self._inbox) == 2:\n                continue\n",
    ),
    Fault(
        "I3",
        "an error that nobody foresaw goes through the loop",
        _CONTROL,
        "    except Exception as error:\n        _log.exception('%s %s failed'",
        "    except ZeroDivisionError as error:\n        _log.exception('%s %s failed'",
    ),
    Fault(
        "I3",
        "a transaction that is done keeps others out",
        "scheduling/verbs/transaction.py",
        "        finally:\n            self._busy = False\n",
        "        finally:\n            pass\n",
    ),
    Fault(
        "I3",
        "a session that is ended stays open",
        "weights/session.py",
        "        self._tally = None\n        self._hold",
        "        self._hold",
    ),
    Fault(
        "I3",
        "a drain leaves the door closed",
        _CONTROL,
        "            if reply is not None:\n                gate.open",
        "            if reply is not None and (not reply.success):\n                gate.open",
    ),
    Fault(
        "I3",
        "a flush with a deadline waits for ever",
        _FLUSH,
        "        if self._state.clock.now() < waiter.deadline and (not withdrawn):\n",
        "        if not withdrawn:\n",
    ),
    Fault(
        "I3",
        "a drain waits beyond its time",
        "scheduling/verbs/drain.py",
        "None else state.clock.now() + timeout\n",
        "None else state.clock.now() + 2 * timeout + 1\n",
    ),
    Fault(
        "I3",
        "a step never ends",
        _SCHEDULER,
        "        for request in self.state.deadlines",
        "        while self.state.clock.now() > 150:\n            pass\n"
        "        for request in self.state.deadlines",
    ),
    Fault(
        "I4",
        "a request keeps its pages when it ends",
        _KV,
        "        self.pages.give(self.table.page_rows.ids(row, _first_own(request), request.num_pages))\n",
        "",
    ),
    Fault(
        "I4",
        "a request gives its last page back twice",
        _KV,
        "_first_own(request), request.num_pages))\n",
        "_first_own(request), request.num_pages))\n        if request.num_pages > _first_own(request) + 2:\n"
        "            first = _first_own(request)\n"
        "            self.pages.give(self.table.page_rows.ids(row, first, first + 1))\n",
    ),
    Fault(
        "I4",
        "a row is never given back",
        _KV,
        "        self.table.give_one(row)\n        request.no_prefix_sharing",
        "        request.no_prefix_sharing",
    ),
    Fault(
        "I4",
        "a state slot is never given back",
        "scheduling/kv_cache/recurrent_state.py",
        "        self.slots.give_one(int(self.of[request.row]))\n",
        "        pass\n",
    ),
    Fault(
        "I4",
        "pages that somebody else published first are lost",
        _KV,
        "        self.pages.give(done.duplicates)\n",
        "",
    ),
    Fault(
        "I4",
        "a copy to the host that was not begun keeps its pages",
        _TIER,
        "            self.pool.pages.give(target)\n            return\n",
        "            return\n",
    ),
    Fault(
        "I4",
        "a snapshot is kept for a request that is gone",
        "scheduling/kv_cache/state_snapshots.py",
        "            self._let_go(prompt)\n\n    def reset",
        "            pass\n\n    def reset",
    ),
    Fault(
        "I5",
        "a retracted request loses its last token",
        _REQUESTS,
        "        request.retractions += 1\n",
        "        request.retractions += 1\n        request.total -= request.num_output > 1\n",
    ),
    Fault(
        "I5",
        "a request is told of its end twice",
        _REQUESTS,
        "        self._outputs.append(self._output(request, tokens, finish))\n\n",
        "        self._outputs.append(self._output(request, tokens, finish))\n"
        "        self._outputs.append(self._outputs[-1])\n\n",
    ),
    Fault(
        "I5",
        "a stream's last token is lost",
        "scheduling/streaming.py",
        "request.num_output - self._untold",
        "request.num_output",
    ),
    Fault(
        "I5",
        "a stream leaves tokens out",
        _REQUESTS,
        "        request.reported += len(tokens)\n",
        "        request.reported += len(tokens) + (finish is None and request.num_output > 5)\n",
    ),
    Fault(
        "I5",
        "a retracted request is not put back",
        _REQUESTS,
        "        request.retractions += 1\n        self.waiting.add(request)\n",
        "        request.retractions += 1\n"
        "        if request.retractions < 2:\n            self.waiting.add(request)\n",
    ),
    Fault(
        "I6",
        "page 0 is handed out",
        "memory/pages.py",
        "np.arange(stop - 1, fresh - 1, -1, dtype=np.int32)",
        "np.arange(stop - 2, fresh - 2, -1, dtype=np.int32)",
    ),
    Fault(
        "I6",
        "a page that the window still shows is given back",
        "scheduling/kv_cache/sliding_window.py",
        "request.cached_pages, first // self._page_size)\n",
        "request.cached_pages, first // self._page_size + 1)\n",
    ),
    Fault(
        "I7",
        "a copy to the host does not keep what it reads",
        _TIER,
        "        self._prefix.lock(node)\n        self._track(_Underway(copy, done.node, node))\n",
        "        self._track(_Underway(copy, done.node, None))\n",
    ),
    Fault("I7", "a copy is taken for done before it is", _TIER, ".copy.done()", ".copy is not None"),
    Fault(
        "I7",
        "a request lets go of its prefix when it has published it",
        _KV,
        "            request.cached_pages = full\n",
        "            request.cached_pages = full\n            prefix.unlock(node)\n",
    ),
    Fault(
        "I7",
        "a load from the host does not keep what it reads",
        _TIER,
        "        self._tree.lock(match.node)\n        self._track(_Underway(copy, match.node, None))\n",
        "        nowhere = self._tree._nowhere\n        self._tree.lock(nowhere)\n"
        "        self._track(_Underway(copy, nowhere, None))\n",
    ),
    Fault(
        "I7",
        "a forward pass does not wait for what is loaded",
        "memory/host_kv.py",
        "self.copier.begin(work, blocks=True)",
        "self.copier.begin(work, blocks=False)",
    ),
    Fault(
        "I7",
        "window pages of a cached prefix are not kept",
        "scheduling/kv_cache/window_pages.py",
        "        self.windows.pin(self._held)\n",
        "",
    ),
    Fault(
        "I9",
        "emptying the cache forgets prefixes",
        "device/handle.py",
        "    def empty_cache(self) -> ReleaseResult:\n",
        "    def empty_cache(self) -> ReleaseResult:\n"
        "        import gc\n        from devicekit.memory.prefix import PrefixCache\n"
        "        [one.evict(1) for one in gc.get_objects() if isinstance(one, PrefixCache)]\n"
        "        return self._empty_cache()\n\n"
        "    def _empty_cache(self) -> ReleaseResult:\n",
    ),
    Fault(
        "I10",
        "asking for available memory empties the cache",
        "device/available.py",
        "    elif empty_cache:\n",
        "    else:\n",
    ),
    Fault(
        "I11",
        "a second pause counts as another",
        _GATE,
        "        if self._paused_at is not None:\n            return False\n",
        "",
    ),
    Fault(
        "I11",
        "continuing while running counts as a change",
        _PAUSE,
        "        return PauseReply(operation.id, True, 'Generation was not paused.', epoch=gate.epoch)\n",
        "        gate._epoch += 2\n"
        "        return PauseReply(operation.id, True, '', epoch=gate.epoch, changed=True)\n",
    ),
    Fault(
        "I11",
        "memory is released a second time",
        _OCCUPATION,
        "if tag in self._released and ranks.least(tag in self._gone):",
        "if False:",
    ),
    Fault(
        "I12",
        "a release point tells before and after the wrong way round",
        "release/points.py",
        "done.reserved_before, done.reserved_after, stats",
        "done.reserved_after, done.reserved_before, stats",
    ),
    Fault(
        "weights", "new weights do not open a new epoch", _REQUESTS, "        self.weights_epoch += 1\n", ""
    ),
    Fault(
        "weights",
        "tokens of old weights are told as of new ones",
        _REQUESTS,
        "            self._close_span(request)\n        self.weight_version",
        "        self.weight_version",
    ),
    Fault(
        "weights",
        "the weights keep their old name",
        _REQUESTS,
        "        self.weight_version = version\n",
        "        self.weight_version = self.weight_version or version\n",
    ),
    Fault(
        "weights",
        "prefixes of old weights are found by new requests",
        _REQUESTS,
        "return (request.namespace, self.weights_epoch)",
        "return (request.namespace, 0)",
    ),
    Fault(
        "weights",
        "a half-written update is not taken back",
        "weights/rollback.py",
        "                weight.copy_(old)",
        "                weight.copy_(old) if weight.dim() == 1 else None",
    ),
    Fault(
        "weights",
        "generation goes on with weights that are half-written",
        "weights/store.py",
        "        self._untrusted.update(names)\n",
        "        self._untrusted.update(names) if self.released else None\n",
    ),
    Fault(
        "weights",
        "a copy of released weights is not put back",
        "weights/regions.py",
        "                fresh[key].copy_(one.backup)\n",
        "                pass\n",
    ),
    Fault(
        "weights",
        "weights are written while requests use them",
        "weights/update.py",
        "    return state.gate.paused or bool(state.gate.holds) or (not state.requests.holding_kv)\n",
        "    return True\n",
    ),
    Fault(
        "verbs",
        "a paused scheduler runs",
        _GATE,
        "        self.may_run = not (self._failure or self._holds or self._paused_at is not None)",
        "        self.may_run = not (self._failure or self._holds)",
    ),
    Fault(
        "verbs",
        "generation goes on without memory",
        _GATE,
        "        self.may_run = not (self._failure or self._holds or self._paused_at is not None)",
        "        self.may_run = not (self._failure or self._paused_at is not None)",
    ),
    Fault(
        "verbs",
        "a drain lets others in",
        "scheduling/planning.py",
        "if budget > 0 and requests.waiting and self._state.gate.admitting:",
        "if budget > 0 and requests.waiting:",
    ),
    Fault("verbs", "a deadline is ignored", _DEADLINES, "now >= due", "now >= due + 1"),
    Fault(
        "verbs",
        "a pause does not end by itself",
        _PAUSE,
        "    if due is None or state.clock.now() < due or state.gate.holds:\n",
        "    if True:\n",
    ),
    Fault(
        "verbs",
        "an abort by prefix ends one request only",
        _PAUSE,
        "request.id.startswith(prefix)]\n",
        "request.id.startswith(prefix)][:1]\n",
    ),
    Fault(
        "verbs",
        "an abort by prefix ends others too",
        _PAUSE,
        "request.id.startswith(prefix)",
        "request.id.startswith(prefix[:-1])",
    ),
    Fault(
        "tokens",
        "a column that moves keeps the seed of its place",
        "scheduling/sampling.py",
        "        self._seed[to] = self._seed[column]\n",
        "",
    ),
    Fault(
        "tokens",
        "a stop string over two tokens is missed",
        "text/stops.py",
        "        self._node, self._seen = (node, at)\n",
        "        self._node, self._seen = (0, at)\n",
    ),
    Fault(
        "tokens",
        "a request goes on with pages that it has given back",
        _KV,
        "        self.table.write_pages(row, known, done.pages)\n",
        "",
    ),
    Fault(
        "tokens",
        "a recurrent state is not restored with its prefix",
        "scheduling/kv_cache/state_snapshots.py",
        "                restored.append((self._slot_of(prompt.begun_with[0]), slot))\n",
        "                pass\n",
    ),
    Fault(
        "tokens",
        "a step runs one token beyond the limit",
        "scheduling/running.py",
        "self._due.pop(steps, _NOBODY)",
        "self._due.pop(steps - 1, _NOBODY)",
    ),
)
