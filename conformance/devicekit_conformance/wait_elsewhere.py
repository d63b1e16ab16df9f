"""Imports events from pickled handles on standard input, and says which of them are done."""

from __future__ import annotations

import json
import pickle
import sys
from typing import cast

from devicekit.contract.handles import Event
from devicekit_conformance.context import Context
from devicekit_conformance.target import Target
from devicekit_conformance.undisturbed import in_a_fork, undisturbed


def main(address: str, probe: str | None = None) -> None:
    """Run in a process of its own, with the address of the backend that exported."""
    context = Context(Target(address, probe))
    import_event = undisturbed(context, "import_event")
    handles = [pickle.loads(handle) for handle in pickle.load(sys.stdin.buffer)]
    in_a_fork(context, "import_event", 0, handles[0])
    events = [cast(Event, import_event(0, handle)) for handle in handles]
    print(json.dumps([event.query() is True for event in events]))


if __name__ == "__main__":
    main(*sys.argv[1:])
