"""What operators do to a scheduler: flush, pause, continue, abort, drain, and transactions of these."""
