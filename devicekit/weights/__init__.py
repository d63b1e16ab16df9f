"""Replacing a model's weights while it serves."""
