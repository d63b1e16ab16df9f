"""Strict stand-ins for vendors' torch modules: real names, parameters and versions over a model of a device."""
