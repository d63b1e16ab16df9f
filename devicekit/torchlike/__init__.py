"""What backends over a torch device module share, so that a plugin states only how its vendor differs."""

from devicekit.torchlike.backend import TorchModuleBackend
from devicekit.torchlike.error_words import CUDA_CODES, cuda_like_rules
from devicekit.torchlike.errors import ErrorRules, classify
from devicekit.torchlike.finding import Findings
from devicekit.torchlike.generic import GenericBackend
from devicekit.torchlike.needs import hide, lacks, needs
from devicekit.torchlike.quirks import Quirk
from devicekit.torchlike.vendor import Vendor

__all__ = [
    "CUDA_CODES",
    "ErrorRules",
    "Findings",
    "GenericBackend",
    "Quirk",
    "TorchModuleBackend",
    "Vendor",
    "classify",
    "cuda_like_rules",
    "hide",
    "lacks",
    "needs",
]
