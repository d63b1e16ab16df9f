"""What backends over a torch device module share, so that a plugin states only how its vendor differs."""

from devicekit.torchlike.backend import TorchModuleBackend
from devicekit.torchlike.errors import ErrorRules, classify
from devicekit.torchlike.needs import hide, lacks, needs
from devicekit.torchlike.quirks import Quirk
from devicekit.torchlike.vendor import Vendor

__all__ = ["ErrorRules", "Quirk", "TorchModuleBackend", "Vendor", "classify", "hide", "lacks", "needs"]
