"""Benchmarks: what the engine's bookkeeping costs, in units that compare between machines."""
