"""The ops: ``torch.ops.torchcoinfer.*``, each with its public function and its plain-PyTorch reference."""

from torchcoinfer.ops.activation import decode_activation, encode_activation
from torchcoinfer.ops.bitmap import bitmap_pack, bitmap_unpack
from torchcoinfer.ops.bitmap_linear import bitmap_linear
from torchcoinfer.ops.isa import cpu_isa, cpu_isas
from torchcoinfer.ops.library import has_kernels
from torchcoinfer.ops.pack import pack_codes, unpack_codes
from torchcoinfer.ops.quant_conv2d import quant_conv2d
from torchcoinfer.ops.quant_embedding import quant_embedding
from torchcoinfer.ops.quant_linear import quant_linear
from torchcoinfer.ops.quantize import dequantize, quantize_pack
from torchcoinfer.ops.reorder import reorder_
from torchcoinfer.ops.search_grid import search_grid
from torchcoinfer.ops.sparse24 import sparse24_pack, sparse24_unpack
from torchcoinfer.ops.sparse24_linear import sparse24_linear

__all__ = [
    "bitmap_linear",
    "bitmap_pack",
    "bitmap_unpack",
    "cpu_isa",
    "cpu_isas",
    "decode_activation",
    "dequantize",
    "encode_activation",
    "has_kernels",
    "pack_codes",
    "quant_conv2d",
    "quant_embedding",
    "quant_linear",
    "quantize_pack",
    "reorder_",
    "search_grid",
    "sparse24_linear",
    "sparse24_pack",
    "sparse24_unpack",
    "unpack_codes",
]
