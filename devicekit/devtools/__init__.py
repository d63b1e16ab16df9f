"""Tools for people who work on devicekit or on a backend."""
