"""Serves an engine over HTTP: generation, the control verbs, and what an operator wants to see."""
