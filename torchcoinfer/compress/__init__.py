"""Compression: one algorithm a file; ``apply`` puts a plan's choices into a copy of the model."""

from torchcoinfer.compress.apply import apply_to_model, option_of
from torchcoinfer.compress.hessian import Hessian
from torchcoinfer.compress.inputs import LayerInputs, segment_inputs
from torchcoinfer.compress.nearest import nearest
from torchcoinfer.compress.obs import obs
from torchcoinfer.compress.quantized import Quantized

__all__ = [
    "Hessian",
    "LayerInputs",
    "Quantized",
    "apply_to_model",
    "nearest",
    "obs",
    "option_of",
    "segment_inputs",
]
