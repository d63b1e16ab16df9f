"""Several engines that are steered as one: one outcome for a verb over all, and one version of the weights.

The fleet carries no request of a client and starts no engine: a gateway, Ray Serve or Kubernetes does that. It
knows which engines there must be, tells all of them the same, and says what became of it on each. What it
remembers fits into one small file; everything else is asked of the engines, so that a fleet process may be killed
at any moment.

It claims the engines that it steers, so that no other fleet does meanwhile (`devicekit.weights.membership`).
An engine that is started with ``--await-fleet`` generates nothing before the fleet has brought its weights.
"""

from devicekit.fleet.endpoint import Answer, Endpoint, Unreachable
from devicekit.fleet.errors import FleetBusy, FleetError, NoFleetWeights, UnknownMembers
from devicekit.fleet.fleet import Fleet
from devicekit.fleet.members import DnsMembers, MemberSource
from devicekit.fleet.outcomes import FleetReply, MemberOutcome, MemberView
from devicekit.fleet.record import FleetRecord, Phase, RecordFile, Served, open_record
from devicekit.fleet.tend import tend
from devicekit.fleet.update import FleetUpdate

__all__ = [
    "Answer",
    "DnsMembers",
    "Endpoint",
    "Fleet",
    "FleetBusy",
    "FleetError",
    "FleetRecord",
    "FleetReply",
    "FleetUpdate",
    "MemberOutcome",
    "MemberSource",
    "MemberView",
    "NoFleetWeights",
    "Phase",
    "RecordFile",
    "Served",
    "UnknownMembers",
    "Unreachable",
    "open_record",
    "tend",
]
