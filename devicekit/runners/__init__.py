"""What turns a batch into tokens: the runner of Hugging Face models, and the model directories that it opens.

All that is used of transformers is named in `huggingface`, and imported when a model is first opened.
"""

from devicekit.runners.checkpoint import ModelDirectory
from devicekit.runners.drafted import DraftedRunner
from devicekit.runners.errors import (
    CheckpointMismatch,
    InvalidModelDirectory,
    MissingDependency,
    MissingTokenizer,
    ModelError,
    UnsupportedModel,
)
from devicekit.runners.probe import ModelSketch, sketch_model
from devicekit.runners.transformers_runner import TransformersRunner
from devicekit.runners.weight_files import StoredTensor

__all__ = [
    "CheckpointMismatch",
    "DraftedRunner",
    "InvalidModelDirectory",
    "MissingDependency",
    "MissingTokenizer",
    "ModelDirectory",
    "ModelError",
    "ModelSketch",
    "StoredTensor",
    "TransformersRunner",
    "UnsupportedModel",
    "sketch_model",
]
