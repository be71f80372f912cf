"""The ops: ``torch.ops.torchcoinfer.*``, each with its public function and its plain-PyTorch reference."""

from torchcoinfer.ops.isa import cpu_isa, cpu_isas
from torchcoinfer.ops.library import has_kernels
from torchcoinfer.ops.pack import pack_codes, unpack_codes
from torchcoinfer.ops.quant_conv2d import quant_conv2d
from torchcoinfer.ops.quant_embedding import quant_embedding
from torchcoinfer.ops.quant_linear import quant_linear
from torchcoinfer.ops.quantize import dequantize, quantize_pack

__all__ = [
    "cpu_isa",
    "cpu_isas",
    "dequantize",
    "has_kernels",
    "pack_codes",
    "quant_conv2d",
    "quant_embedding",
    "quant_linear",
    "quantize_pack",
    "unpack_codes",
]
