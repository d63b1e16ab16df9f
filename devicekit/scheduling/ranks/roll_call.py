"""Who is still there: signs of life that ranks leave in their store, and one verdict when they lose each other."""

from __future__ import annotations

import json
import threading
import time

from torch.distributed.distributed_c10d import Store

from devicekit.scheduling.errors import RankLost, describe_failures

_MISSED = 4  # heartbeats without a sign of life that mean a process has ended or stands still
_HANG_UP = 1.0  # seconds for the last sign of life, to a store that may be gone
_LOOK = 0.02  # seconds between looks at the store


class RollCall:
    """One rank's part in it.

    Args:
        store: shared by the ranks, and by nobody else.
        heartbeat: seconds between signs of life.
        patience: seconds to wait for a rank that is alive and does not come.
    """

    def __init__(self, store: Store, rank: int, size: int, heartbeat: float, patience: float) -> None:
        self._store = store
        self._rank = rank
        self._size = size
        self._heartbeat = heartbeat
        self._patience = patience
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="devicekit-heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """Leave no more signs of life."""
        self._stopped.set()
        # A thread that is still inside of torch when the interpreter ends takes the process down with it.
        self._thread.join(_HANG_UP)

    def verdict(self, reason: str, *, mine: bool, waited: float) -> RankLost:
        """Report, hear who else reports, and agree on who is lost. Takes at most as long as the patience.

        Args:
            reason: what this rank met with.
            mine: it is this rank's own failure.
            waited: seconds of its patience that are used up.
        """
        try:
            self._store.set(f"report/{self._rank}", reason if mine else "")
            failures = self._failures(waited)
            found = self._store.compare_set("verdict", "", json.dumps(failures))
            failures = {int(rank): why for rank, why in json.loads(found).items()}
        except (RuntimeError, ValueError):  # torch's own errors are RuntimeErrors
            message = (
                f"The ranks have lost each other ({_one_line(reason)}), and the store that would tell whom "
                "does not answer: its process, rank 0 or the launcher, may have ended."
            )
            return RankLost(message)
        finally:
            self.stop()
        if not failures:
            return RankLost(f"The ranks have lost each other, though all are there: {_one_line(reason)}")
        return RankLost(f"Lost {describe_failures(failures)}", tuple(sorted(failures)))

    def _failures(self, waited: float) -> dict[int, str]:
        """Who failed and how, by rank: what they report, or that they do not."""
        store = self._store
        # Even if the time is up: the others may only just have noticed, and signs of life take a while.
        deadline = time.monotonic() + max(self._patience - waited, self._heartbeat * (_MISSED + 2))
        beats: dict[int, tuple[int, float]] = {}
        while not store.check(["verdict"]):
            now = time.monotonic()
            reports = {
                rank: store.get(f"report/{rank}").decode(errors="replace")
                for rank in range(self._size)
                if store.check([f"report/{rank}"])
            }
            failures = {rank: f"it gave up: {_one_line(why)}" for rank, why in reports.items() if why}
            missing = [rank for rank in range(self._size) if rank not in reports]
            for rank in missing:
                count = store.add(f"beat/{rank}", 0)
                if beats.get(rank, (-1, 0.0))[0] != count:
                    beats[rank] = count, now
                elif now - beats[rank][1] > self._heartbeat * _MISSED:
                    failures[rank] = "its process has ended or stands still"
            if failures or not missing:
                return failures
            if now > deadline:
                return dict.fromkeys(missing, f"it is alive, and did not come within {self._patience:g} s")
            time.sleep(_LOOK)
        return {}

    def _beat(self) -> None:
        try:
            while not self._stopped.wait(self._heartbeat):
                self._store.add(f"beat/{self._rank}", 1)
        except RuntimeError:  # the store is gone; whoever needs it next will say so
            return


def _one_line(text: str) -> str:
    return " ".join(text.split())[:300]
