"""Several ranks that serve as one: schedulers in lockstep, verbs agreed, losses named."""
