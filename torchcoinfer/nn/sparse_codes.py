"""The storage of the sparse modules: 2:4 or bitmap, float or quantized survivors."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from torchcoinfer import ops
from torchcoinfer.errors import ArgumentError
from torchcoinfer.nn.packed import PackedModule
from torchcoinfer.ops.pack import BLOCK_N, TILE_K, ceil_div
from torchcoinfer.ops.survivors import CHUNK

FORMATS = ("2:4", "bitmap")


def check_format(owner: str, name: str) -> None:
    if name not in FORMATS:
        raise ArgumentError(f"{owner}: format", got=repr(name), expected=f"one of {FORMATS}")


def check_two_of_four(owner: str, mask: Tensor) -> None:
    of_four = functional.pad(mask, (0, -mask.shape[1] % 4)).unflatten(1, (-1, 4)).sum(-1)
    if int(of_four.max()) > 2:
        raise ArgumentError(
            f"{owner}: mask",
            got=f"{int(of_four.max())} of 4 consecutive columns kept",
            expected="at most 2 of 4 in format '2:4'",
            remedy="prune to 2:4, or use format 'bitmap'",
        )


class SparsePacked(PackedModule):
    """A packed sparse weight [out_features, in_features].

    Buffers for 2:4: ``index``, ``values``; for bitmap: ``mask``, ``offsets``, ``values``; the others are
    None. Quantized survivors (bits > 0) have ``scales`` and perhaps ``zeros``; float survivors (bits 0)
    have neither.
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        format: str,
        bits: int,
        group_size: int,
        activation_bits: int | None,
        survivor_chunks: int,
        values_dtype: torch.dtype,
        device: torch.device | str | None,
    ):
        check_format(type(self).__name__, format)
        super().__init__(
            bits=bits, group_size=group_size, activation_bits=activation_bits, sparsity_format=format
        )
        self.in_features, self.out_features = in_features, out_features
        tiles = (ceil_div(out_features, BLOCK_N), ceil_div(in_features, TILE_K))
        per_chunk = 8 * bits if bits else CHUNK
        two_four = format == "2:4"
        shape = (*tiles, 4 * per_chunk) if two_four else (survivor_chunks * per_chunk,)
        index = torch.full(
            (*tiles, 64), 0x44, dtype=torch.uint8, device=device
        )  # columns 0 and 1 of every group
        mask = torch.zeros((*tiles, 8), dtype=torch.int64, device=device)
        offsets = torch.zeros(tiles[0] + 1, dtype=torch.int32, device=device)
        dtype = torch.uint8 if bits else values_dtype
        self.register_buffer("index", index if two_four else None)
        self.register_buffer("mask", None if two_four else mask)
        self.register_buffer("offsets", None if two_four else offsets)
        self.register_buffer("values", torch.zeros(shape, dtype=dtype, device=device))
        self.register_buffer("scales", None)
        self.register_buffer("zeros", None)

    def _ordered(self) -> dict[str, tuple[str, int]]:
        if self.sparsity_format != "2:4":
            return {}
        return {"index": ("index", 0), "values": ("survivors", self.bits)}

    def _pack(self, weight: Tensor, mask: Tensor) -> None:
        """Fills the storage; weight [N, K] float, or codes whose pruned places hold the zero point."""
        if self.sparsity_format == "2:4":
            check_two_of_four(type(self).__name__, mask)
            self.index, self.values = ops.sparse24_pack(weight, mask, self.bits)
        else:
            self.mask, self.offsets, self.values = ops.bitmap_pack(weight, mask, self.bits)

    def _unpack(self) -> tuple[Tensor, Tensor]:
        """Codes or float values [N, K], and which are stored, bool [N, K]."""
        shape = (self.bits, self.out_features, self.in_features)
        if self.sparsity_format == "2:4":
            canonical = self._canonical()
            return ops.sparse24_unpack(canonical["index"], canonical["values"], *shape)
        return ops.bitmap_unpack(self.mask, self.offsets, self.values, *shape)

    def forward(self, x: Tensor) -> Tensor:
        index = self.index
        if (
            index is not None
        ):  # decided at compile time by TorchScript, as a comparison of strings would not be
            return torch.ops.torchcoinfer.sparse24_linear(
                x,
                index,
                self.values,
                self.scales,
                self.zeros,
                self.bias,
                self.bits,
                self.group_size,
                self.out_features,
                self.activation_bits,
                self.layout,
                self.activation,
            )
        return torch.ops.torchcoinfer.bitmap_linear(
            x,
            self.mask,
            self.offsets,
            self.values,
            self.scales,
            self.zeros,
            self.bias,
            self.bits,
            self.group_size,
            self.out_features,
            self.activation_bits,
            self.layout,
            self.activation,
        )
