"""Modules over packed weights: buffers only, scriptable, exportable, no decisions."""

from torchcoinfer.nn.quant_conv2d import QuantConv2d
from torchcoinfer.nn.quant_embedding import QuantEmbedding
from torchcoinfer.nn.quant_linear import QuantLinear
from torchcoinfer.nn.sparse_linear import SparseLinear
from torchcoinfer.nn.sparse_quant_linear import SparseQuantLinear

__all__ = ["QuantConv2d", "QuantEmbedding", "QuantLinear", "SparseLinear", "SparseQuantLinear"]
