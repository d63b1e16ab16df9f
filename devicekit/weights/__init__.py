"""Replacing a model's weights while it serves, looking at them, and giving their memory away for a while."""
