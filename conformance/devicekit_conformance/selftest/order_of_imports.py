"""A backend that can be imported only after torch."""

from __future__ import annotations

import sys

if "torch" not in sys.modules:
    raise ImportError("import torch before this plugin")

from devicekit_conformance.selftest.honest import Honest


class NeedsTorchFirst(Honest):
    """Importing the plugin before torch fails."""

    caught_by = "DK-LOAD-008"
