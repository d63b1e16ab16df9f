"""Requests, the running batch, admission, the control verbs and the scheduler loop."""
