"""What is particular to Hugging Face and torchvision models: inputs, sizes, outputs, names."""

from __future__ import annotations

from torchcoinfer.models.defaults import default_dynamic_shapes, default_inputs, default_output, judged_tensor
from torchcoinfer.models.hugging_face import disable_cache
from torchcoinfer.models.load import LoadedModel, load_model
from torchcoinfer.models.sentence import SentenceEmbedder

__all__ = [
    "LoadedModel",
    "SentenceEmbedder",
    "default_dynamic_shapes",
    "default_inputs",
    "default_output",
    "disable_cache",
    "judged_tensor",
    "load_model",
]
