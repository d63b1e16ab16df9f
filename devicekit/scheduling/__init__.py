"""Requests, the running batch, admission, and the scheduler loop. To be read in this order:

`request` and `messages` are what goes in and comes out, `batch` is what a runner is handed. `scheduler` is the
loop. A step of it is `checking` and `waiting` (who comes in), `retraction` (room for those who run), `reservation`
and `planning` (what the pass computes), and `results` with `stopping` (what became of it). `running` holds the
decoding requests, as `columns` of flat arrays; beside them, `sampling` and `adjusting` hold what some want.
`kv` is a request's hold on the pools, `state` what all of these share, `audit` whether every id is accounted for,
and `resting` how long there is nothing to do.

Apart from that, `verbs` is what operators do, `pools` what models other than the plainest need, `ranks` several
processes that serve as one, and `agreement` what they have to agree on.
"""
