"""How far a candidate got on its way to becoming a backend."""

from __future__ import annotations

import enum


class Stage(enum.Enum):
    """Each stage is entered only after the one before it succeeded."""

    FOUND = "found"  # an entry point or an in-process registration exists, and nothing else bears its name
    MANIFEST = "manifest"  # backend.toml is read and checked
    VERSION = "version"  # contract, torch and vendor ranges are met
    IMPORT = "import"  # the plugin is imported and constructed
    HOOKS = "hooks"  # every hook is known and has the contract's signature
    PROBE = "probe"  # is_available() and device_count() answered in time
