"""An embedding table on quantized weights."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from torchcoinfer.errors import ArgumentError
from torchcoinfer.nn.checks import FLOAT_DTYPES, check_config, check_matrix
from torchcoinfer.nn.packed import DenseCodes


class QuantEmbedding(DenseCodes):
    """``nn.Embedding`` whose table [V, D] is stored as group-wise codes; a look-up dequantizes its rows.

    indices int64 or int32 of any shape; output [..., D] of ``dtype``, which ``.to(dtype)`` changes (the
    storage stays). ``padding_idx`` is kept for information: it acts on gradients alone. Buffers as in
    ``QuantLinear``.

    Args:
        num_embeddings, embedding_dim: V and D.
        bits, group_size, symmetric, scale_dtype, device: as in ``QuantLinear``.
        dtype: of the output.
        padding_idx: as in ``nn.Embedding``.

    Raises:
        ArgumentError: unknown bits, group size or dtype.
    """

    def __init__(
        self,
        num_embeddings: int,
        embedding_dim: int,
        *,
        bits: int = 4,
        group_size: int = 128,
        symmetric: bool = False,
        scale_dtype: torch.dtype = torch.float16,
        dtype: torch.dtype = torch.float32,
        padding_idx: int | None = None,
        device: torch.device | str | None = None,
    ):
        super().__init__(
            num_embeddings,
            embedding_dim,
            bits=bits,
            group_size=group_size,
            activation_bits=None,
            symmetric=symmetric,
            scale_dtype=scale_dtype,
            device=device,
        )
        if dtype not in FLOAT_DTYPES:
            raise ArgumentError("QuantEmbedding: dtype", got=dtype, expected=f"one of {FLOAT_DTYPES}")
        self.num_embeddings, self.embedding_dim = num_embeddings, embedding_dim
        self.in_features, self.out_features = embedding_dim, num_embeddings
        self.padding_idx, self.dtype = padding_idx, dtype
        self._finish(None)

    @classmethod
    def from_float(
        cls,
        embedding: nn.Embedding,
        bits: int = 4,
        group_size: int = 128,
        symmetric: bool = False,
        scale_dtype: torch.dtype = torch.float16,
    ) -> QuantEmbedding:
        """Rounds to nearest on a minimum-maximum (symmetric: absolute maximum) grid per group.

        Raises:
            ArgumentError: unknown bits, group size or dtype; NaN or Inf in the table; ``max_norm`` set (a
            look-up
                would have to change the table).
        """
        if embedding.max_norm is not None:
            raise ArgumentError(
                "QuantEmbedding: max_norm",
                got=embedding.max_norm,
                expected="None",
                remedy="renormalize the table once and set max_norm to None",
            )
        weight = embedding.weight
        module = cls._hollow(weight.shape, bits, group_size, symmetric, weight.dtype, embedding.padding_idx)
        module._quantize(weight, scale_dtype)
        module._finish(None)
        return module

    @classmethod
    def from_quantized(
        cls,
        codes: Tensor,
        scales: Tensor,
        zeros: Tensor | None,
        *,
        bits: int,
        group_size: int,
        dtype: torch.dtype = torch.float32,
        padding_idx: int | None = None,
    ) -> QuantEmbedding:
        """Packs codes uint8 [V, D] with scales [V, G] and zeros uint8 [V, G] or None.

        Raises:
            ArgumentError: shapes, dtypes or values that disagree with the above.
        """
        shape = check_matrix("QuantEmbedding", codes)
        module = cls._hollow(shape, bits, group_size, zeros is None, dtype, padding_idx)
        module._pack(codes, scales, zeros)
        module._finish(None)
        return module

    @classmethod
    def _hollow(
        cls, shape, bits: int, group_size: int, symmetric: bool, dtype: torch.dtype, padding_idx: int | None
    ) -> QuantEmbedding:
        """Without storage: the caller fills it."""
        check_config("QuantEmbedding", bits, group_size)
        return cls(
            shape[0],
            shape[1],
            bits=bits,
            group_size=group_size,
            symmetric=symmetric,
            dtype=dtype,
            padding_idx=padding_idx,
            device="meta",
        )

    def _apply(self, fn, recurse: bool = True) -> nn.Module:
        # A probe shows which floating dtype fn gives; the table itself keeps its storage.
        self.dtype = fn(torch.empty(0, dtype=self.dtype, device=self.packed.device)).dtype
        return super()._apply(fn, recurse)

    def _ordered(self) -> dict[str, tuple[str, int]]:
        return {}  # rows are read one by one: the canonical order serves

    def forward(self, indices: Tensor) -> Tensor:
        return torch.ops.torchcoinfer.quant_embedding(
            indices,
            self.packed,
            self.scales,
            self.zeros,
            self.bits,
            self.group_size,
            self.num_embeddings,
            self.embedding_dim,
            self.dtype,
        )

    def dequantize_weight(self) -> Tensor:
        """The table that look-ups read: [V, D] float32."""
        return self._dequantized(torch.float32)

    def extra_repr(self) -> str:
        return (
            f"{self.num_embeddings}, {self.embedding_dim}, in_features={self.in_features}, "
            f"out_features={self.out_features}, dtype={self.dtype}, padding_idx={self.padding_idx}, "
            + self._storage_repr()
        )
