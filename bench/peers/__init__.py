"""Other engines, driven as their own loops drive them, to be timed in turns with ours.

One module a peer. Each says what stands in for a part of it that cannot run here (`STUBBED`), and which parts of
its own loop are in a figure. No figure is kept: a peer that cannot be imported is not in the table.
"""

from bench.peers.peer import Peer, peers

__all__ = ["Peer", "peers"]
