"""What the packed modules share: storage that survives ``.to(dtype)``, byte counts, dense quantized
weights.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from torchcoinfer import ops
from torchcoinfer.nn import layouts
from torchcoinfer.nn.checks import check_codes, check_config, check_groups, check_weight
from torchcoinfer.ops.epilogue import check_activation
from torchcoinfer.ops.pack import BLOCK_N, TILE_K, ceil_div, group_count
from torchcoinfer.ops.reorder import CANONICAL_LAYOUT

STORAGE = ("packed", "scales", "zeros", "index", "mask", "offsets", "values", "x_scales")


class PackedModule(nn.Module):
    """A module whose weight is a few packed buffers (``csrc/layout.h``, ``csrc/layout_sparse.h``).

    ``.to(dtype)`` changes the dtype of the bias, never of the storage: codes, scales, zero points, indices,
    masks and survivors keep their bytes, so that every round trip is exact and ``packed_bytes`` stays what
    the plan says. The output's dtype is the input's.

    On a GPU the buffers that ``_ordered`` names are in the device order (``csrc/layout_device.h``) and
    ``layout`` is 1; ``state_dict``, copies and pickles give and take canonical bytes on either side.
    """

    # No class annotations here or below: TorchScript cannot read them under postponed evaluation.
    # properties are compiled by TorchScript unless named here
    __jit_unused_properties__ = ["packed_bytes"]

    def __init__(self, *, bits: int, group_size: int, activation_bits: int | None, sparsity_format: str):
        super().__init__()
        self.bits, self.group_size = bits, group_size
        self.activation_bits = activation_bits or 0  # 0: weight-only
        self.layout = CANONICAL_LAYOUT
        self.sparsity_format = sparsity_format
        self.activation = "none"

    def set_activation(self, activation: str) -> PackedModule:
        """Let outputs go through an activation function in the same call; returns this module, changed.

        Args:
            activation: "none", "relu", "gelu", "gelu_tanh" or "silu".

        Raises:
            ArgumentError: another name.
        """
        check_activation(type(self).__name__, activation)
        self.activation = activation
        return self

    @property
    def packed_bytes(self) -> int:
        """Bytes of the weight: codes or values, scales, zero points, indices, masks, offsets, and static
        scales of x; not the bias.
        """
        return sum(
            t.numel() * t.element_size() for n, t in self._buffers.items() if n in STORAGE and t is not None
        )

    def _storage_repr(self) -> str:
        return (
            f"bits={self.bits}, group_size={self.group_size}, symmetric={self.zeros is None}, "
            f"activation_bits={self.activation_bits or None}, sparsity_format={self.sparsity_format!r}"
            + ("" if self.activation == "none" else f", activation={self.activation!r}")
        )

    def _finish(self, bias: Tensor | None) -> None:
        """Sets the bias and moves absent buffers to the end.

        torch.export (seen in 2.14) counts every buffer of its root as a graph input, absent ones included.
        """
        self.register_buffer("bias", bias)
        for name in [n for n, t in self._buffers.items() if t is None]:
            self._buffers[name] = self._buffers.pop(name)
        self._order(self._buffers)

    def _ordered(self) -> dict[str, tuple[str, int]]:
        """Buffers that have a device order: their kind and the bits of their codes."""
        return {}

    def _canonical(self) -> dict[str, Tensor]:
        """The buffers of ``_ordered`` in canonical order: copies where they are in another."""
        buffers = {name: self._buffers[name] for name in self._ordered()}
        if self.layout == CANONICAL_LAYOUT:
            return buffers
        kinds = self._ordered().items()
        return {name: layouts.in_layout(buffers[name], *kind, CANONICAL_LAYOUT) for name, kind in kinds}

    def _order(self, canonical: dict[str, Tensor | None]) -> None:
        """Takes canonical buffers, in the order for the device that they are on."""
        ordered = self._ordered()
        for name, kind in ordered.items():
            self.layout = layouts.wanted_layout(canonical[name].device)
            moved = canonical[name]
            if self.layout != CANONICAL_LAYOUT:
                moved = layouts.in_layout(moved, *kind, self.layout)
            self._buffers[name] = moved

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
        self._buffers.update(self._canonical())
        before = {n: t for n, t in self._buffers.items() if n in STORAGE and t is not None}
        super()._apply(fn, recurse)
        for name, stored in before.items():
            moved = self._buffers[name]
            if moved is not None and moved.dtype != stored.dtype:
                self._buffers[name] = stored.to(moved.device)
        self._order(self._buffers)
        return self

    def _save_to_state_dict(self, destination: dict[str, Any], prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination.update({prefix + name: tensor.detach() for name, tensor in self._canonical().items()})

    def _load_from_state_dict(self, *arguments: Any) -> None:
        self._buffers.update(self._canonical())  # super copies into these, or puts others in their place
        self.layout = CANONICAL_LAYOUT
        super()._load_from_state_dict(*arguments)
        self._order(self._buffers)

    def __getstate__(self) -> dict[str, Any]:
        state = dict(self.__dict__)
        state["_buffers"] = {**self._buffers, **self._canonical()}
        state["layout"] = CANONICAL_LAYOUT
        return state

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._order(self._buffers)


class DenseCodes(PackedModule):
    """A packed dense weight [rows, columns]: buffers ``packed``, ``scales``, ``zeros`` (None when
    symmetric).
    """

    def __init__(
        self,
        rows: int,
        columns: int,
        *,
        bits: int,
        group_size: int,
        activation_bits: int | None,
        symmetric: bool,
        scale_dtype: torch.dtype,
        device: torch.device | str | None,
    ):
        check_config(type(self).__name__, bits, group_size, activation_bits)
        super().__init__(
            bits=bits, group_size=group_size, activation_bits=activation_bits, sparsity_format="dense"
        )
        self._rows, self._columns = rows, columns
        shape = (ceil_div(rows, BLOCK_N), ceil_div(columns, TILE_K), 64 * bits)
        groups = (rows, columns, group_size)
        self.register_buffer("packed", torch.zeros(shape, dtype=torch.uint8, device=device))
        self.register_buffer("scales", empty_groups(*groups, scale_dtype, device))
        self.register_buffer("zeros", None if symmetric else empty_groups(*groups, torch.uint8, device))

    def _ordered(self) -> dict[str, tuple[str, int]]:
        return {"packed": ("codes", self.bits)}

    def _quantize(self, weight: Tensor, scale_dtype: torch.dtype) -> None:
        """Fills the storage from a float weight [rows, columns], rounded to nearest on a plain grid."""
        weight = check_weight(type(self).__name__, weight, 2)
        symmetric = self.zeros is None
        packed, scales, zeros = ops.quantize_pack(weight, self.bits, self.group_size, symmetric, scale_dtype)
        self.packed, self.scales, self.zeros = packed, scales, None if symmetric else zeros

    def _pack(self, codes: Tensor, scales: Tensor, zeros: Tensor | None) -> None:
        """Fills the storage from codes uint8 [rows, columns], scales [rows, G] and zeros uint8 [rows, G] or
        None.
        """
        owner, groups = type(self).__name__, (self._rows, group_count(self._columns, self.group_size))
        check_codes(owner, codes, self.bits, (self._rows, self._columns))
        self.scales = check_groups(owner, "scales", scales, groups)
        self.zeros = None if zeros is None else check_groups(owner, "zeros", zeros, groups)
        self.packed = ops.pack_codes(codes.detach().contiguous(), self.bits)

    def _dequantized(self, dtype: torch.dtype) -> Tensor:
        return ops.dequantize(
            self._canonical().get("packed", self.packed),
            self.scales,
            self.zeros,
            self.bits,
            self.group_size,
            self._rows,
            self._columns,
            dtype,
        )


def empty_groups(
    rows: int, columns: int, group_size: int, dtype: torch.dtype, device: torch.device | str | None
) -> Tensor:
    """Zero-filled scales or zero points [ceil(N/16), G, 16]."""
    shape = (ceil_div(rows, BLOCK_N), group_count(columns, group_size), BLOCK_N)
    return torch.zeros(shape, dtype=dtype, device=device)
