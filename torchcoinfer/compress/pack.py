"""From codes to packed modules: which ``torchcoinfer.nn`` class stands for which float module."""

from __future__ import annotations

from torch import Tensor, nn

from torchcoinfer.compress.quantized import Quantized
from torchcoinfer.errors import PlanError
from torchcoinfer.nn import QuantConv2d, QuantEmbedding, QuantLinear, SparseLinear, SparseQuantLinear
from torchcoinfer.theory.options import Option


def stored_transposed(module: nn.Module) -> bool:
    """True for transformers' ``Conv1D``, whose weight is [in, out]; by name: transformers is optional."""
    return type(module).__name__ == "Conv1D" and hasattr(module, "nf")


def weight_matrix(module: nn.Module) -> Tensor:
    """The module's weight as [N, K], detached: a convolution's is [out, in / groups * kh * kw]."""
    weight = module.weight.detach()
    return weight.T if stored_transposed(module) else weight.flatten(1)


def packed_module(module: nn.Module, quantized: Quantized, shift: Tensor | None = None) -> nn.Module:
    """The packed module that takes the place of ``module``, bias included.

    Args:
        module: the float module; not changed.
        quantized: its new weight.
        shift: [N], added to the bias; None: the bias stays.

    Raises:
        PlanError: a format that the module's kind does not have.
    """
    option = quantized.option
    bias = getattr(module, "bias", None)
    if bias is not None and shift is not None:
        bias = (bias.float() + shift).to(bias.dtype)
    if option.format != "int":
        return _sparse_linear(module, quantized, bias)
    codes, scales, zeros = quantized.codes, quantized.scales, quantized.zeros
    storage = {"bits": option.bits, "group_size": option.group_size}
    if isinstance(module, nn.Embedding):
        _refuse_activation_bits(module, option)
        return QuantEmbedding.from_quantized(
            codes, scales, zeros, dtype=module.weight.dtype, padding_idx=module.padding_idx, **storage
        )
    storage["activation_bits"] = option.activation_bits
    if isinstance(module, nn.Conv2d):
        return QuantConv2d.from_quantized(codes, scales, zeros, bias, like=module, **storage)
    return QuantLinear.from_quantized(codes, scales, zeros, bias, **storage)


def _sparse_linear(module: nn.Module, quantized: Quantized, bias: Tensor | None) -> nn.Module:
    option = quantized.option
    if not isinstance(module, nn.Linear) and not stored_transposed(module):
        raise PlanError(
            f"format {option.format!r} on a {type(module).__name__}",
            expected="sparse formats on linear layers only",
            remedy="plan format 'int' for this layer, or leave it as it is",
        )
    if option.bits >= 16:
        _refuse_activation_bits(module, option)
        return SparseLinear.from_dense(
            quantized.codes,
            bias,
            format=option.format,
            mask=quantized.mask,
            values_dtype=quantized.codes.dtype,
        )
    return SparseQuantLinear.from_quantized(
        quantized.codes,
        quantized.mask,
        quantized.scales,
        quantized.zeros,
        bias,
        format=option.format,
        bits=option.bits,
        group_size=option.group_size,
        activation_bits=option.activation_bits,
    )


def _refuse_activation_bits(module: nn.Module, option: Option) -> None:
    if option.activation_bits:
        raise PlanError(
            f"activation_bits on a {type(module).__name__} with {option.bits}-bit weights",
            got=option.activation_bits,
            expected="None: there is no integer product to feed",
        )


def share_storage(modules: list[nn.Module]) -> None:
    """Makes packed modules of one tied weight hold the same buffers, biases apart."""
    first = modules[0]
    for other in modules[1:]:
        for name, buffer in first._buffers.items():
            if name != "bias" and name in other._buffers:
                other._buffers[name] = buffer


class StandIn:
    """What the calibration stream computes with for a layer: its packed modules.

    A weight tied between an embedding and a linear layer is called with indices by one, with activations by
    the other: the input's dtype tells them apart. Where several linear modules with biases of their own share
    a weight, nothing does, and ``replacement`` gives the dense weight.
    """

    def __init__(self, modules: list[nn.Module]):
        self._lookup = [m for m in modules if isinstance(m, QuantEmbedding)]
        self._product = [m for m in modules if not isinstance(m, QuantEmbedding)]

    def __call__(self, x: Tensor) -> Tensor:
        return (self._product if x.is_floating_point() else self._lookup)[0](x)

    def replacement(self) -> StandIn | Tensor:
        if len(self._product) <= 1:
            return self
        return self._product[0].dequantize_weight().flatten(1)
