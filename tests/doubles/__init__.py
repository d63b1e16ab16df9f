"""Strict stand-ins for vendors' torch modules: real names, parameters and versions over a small model of a device."""
