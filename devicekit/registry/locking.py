"""The one lock behind discovery, loading and opening, in order across ``fork``."""

from __future__ import annotations

import os
import threading

registry_lock = threading.RLock()
"""Held while a plugin is imported. Re-entrant: a plugin's import may ask for another backend."""

# A child forked while another thread holds the lock would wait for a thread that it does not have.
if hasattr(os, "register_at_fork"):
    os.register_at_fork(
        before=registry_lock.acquire,
        after_in_parent=registry_lock.release,
        after_in_child=registry_lock.release,
    )
