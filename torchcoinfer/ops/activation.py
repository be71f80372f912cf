"""The codec of tensors that cross the cut: asymmetric codes of 2 to 8 bits, packed into a bit stream.

x [L..., T...]: the leading dims L stay (they may be dynamic), the trailing dims T are static and
flattened to n values. ``codes`` uint8 [L..., ceil(n * bits / 8)]: value i of a row is bits i * bits .. (i
+ 1) * bits - 1 of its bytes, the lowest bit of byte 0 first; unused bits are 0. ``scale`` and
``zero_point`` float32 per row [L...]
(granularity "token") or per last-dim channel over all else [C] ("channel"):
zero_point = min, scale = (max - min) / (2^bits - 1), code = round((x - zero_point) / scale) to nearest even;
x ~ scale * code + zero_point, product and sum rounded one after the other, so that every device gives the
same bits. Where all values are equal the scale is 0 and decoding is exact. NaN or Inf in a row (channel)
makes its scale non-finite and every value decoded from it NaN: never a plausible number.

Worked example: x = [0, 1, 2, 3, 7], bits 3: scale 1, zero_point 0, codes 0, 1, 2, 3, 7 are the bytes 0x88
0x76.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops.library import implement
from torchcoinfer.ops.pack import ceil_div, check_shape

FLOAT_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
GRANULARITIES = ("token", "channel")


def encode_activation(
    x: Tensor, bits: int, granularity: str, leading_dims: int
) -> tuple[Tensor, Tensor, Tensor]:
    """Codes a tensor at the cut; the format is the module's docstring.

    Args:
        x: float32, bfloat16 or float16, any strides.
        bits: 2 to 8.
        granularity: "token" (a scale a row) or "channel" (a scale a last-dim channel).
        leading_dims: how many dims stay; at least one must follow.

    Returns:
        codes uint8 [L..., bytes], scale float32, zero_point float32.

    Raises:
        RuntimeError, ArgumentError: another dtype, bits, granularity or rank.
    """
    return torch.ops.torchcoinfer.encode_activation(x, bits, granularity, leading_dims)


def encode_activation_reference(
    x: Tensor, bits: int, granularity: str, leading_dims: int
) -> tuple[Tensor, Tensor, Tensor]:
    _check("encode_activation", bits, granularity)
    if x.dtype not in FLOAT_DTYPES:
        raise ArgumentError(
            "torchcoinfer::encode_activation: argument 'x'", got=x.dtype, expected="a float dtype"
        )
    if not 0 <= leading_dims < x.dim():
        fact = "torchcoinfer::encode_activation: argument 'leading_dims'"
        raise ArgumentError(
            fact, got=leading_dims, expected=f"0 to {x.dim() - 1}, so that a dim of x follows"
        )
    by_token = granularity == "token"
    rows = x.float().flatten(leading_dims)
    values = rows if by_token else x.float().unsqueeze(0).flatten(0, -2)  # scales along the one dim left
    dim = -1 if by_token else 0
    if values.shape[dim]:
        low, high = values.amin(dim, keepdim=True), values.amax(dim, keepdim=True)
    else:
        low = high = values.sum(dim, keepdim=True)
    # divided by a tensor: by a number, CUDA would multiply with its inverse
    scale = (high - low) / torch.full_like(low, 2**bits - 1)
    steps = (values - low) / torch.where(scale > 0, scale, torch.inf)
    codes = steps.round().nan_to_num(0).clamp(0, 2**bits - 1).to(torch.uint8).reshape(rows.shape)
    return _pack_stream(codes, bits), scale.squeeze(dim), low.squeeze(dim)


def decode_activation(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    granularity: str,
    trailing_shape: list[int],
    dtype: torch.dtype,
) -> Tensor:
    """Inverse of ``encode_activation``: [L..., *trailing_shape] of ``dtype``, within half a step of x.

    Raises:
        RuntimeError, ArgumentError: another dtype, bits, granularity, or shapes that disagree.
    """
    return torch.ops.torchcoinfer.decode_activation(
        codes, scale, zero_point, bits, granularity, trailing_shape, dtype
    )


def decode_activation_reference(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    granularity: str,
    trailing_shape: list[int],
    dtype: torch.dtype,
) -> Tensor:
    _check("decode_activation", bits, granularity)
    if dtype not in FLOAT_DTYPES:
        raise ArgumentError(
            "torchcoinfer::decode_activation: argument 'dtype'", got=dtype, expected="a float dtype"
        )
    count = _count(trailing_shape)
    leading = codes.shape[:-1]
    check_shape("decode_activation", "codes", codes, (*leading, ceil_div(count * bits, 8)))
    of_scale = leading if granularity == "token" else trailing_shape[-1:]
    check_shape("decode_activation", "scale", scale, tuple(of_scale))
    check_shape("decode_activation", "zero_point", zero_point, tuple(of_scale))
    values = _unpack_stream(codes, bits, count).float()
    if granularity == "token":
        x = scale.unsqueeze(-1) * values + zero_point.unsqueeze(-1)
        return x.view(*leading, *trailing_shape).to(dtype)
    return (scale * values.view(*leading, *trailing_shape) + zero_point).to(dtype)


def _count(trailing_shape: list[int]) -> int:
    count = 1
    for size in trailing_shape:
        count *= size
    return count


def _check(op: str, bits: int, granularity: str) -> None:
    if not 2 <= bits <= 8:
        raise ArgumentError(f"torchcoinfer::{op}: argument 'bits'", got=bits, expected="2 to 8")
    if granularity not in GRANULARITIES:
        fact = f"torchcoinfer::{op}: argument 'granularity'"
        raise ArgumentError(fact, got=repr(granularity), expected="'token' or 'channel'")


def _pack_stream(codes: Tensor, bits: int) -> Tensor:
    """uint8 [..., n] to bytes [..., ceil(n * bits / 8)]: eight codes are exactly ``bits`` bytes."""
    length = ceil_div(codes.shape[-1] * bits, 8)
    padded = functional.pad(codes, (0, -codes.shape[-1] % 8))
    eights = padded.view(*padded.shape[:-1], padded.shape[-1] // 8, 8).long()
    words = (eights << bits * torch.arange(8, device=codes.device)).sum(-1, keepdim=True)
    stream = (words >> 8 * torch.arange(bits, device=codes.device) & 255).to(torch.uint8)
    return stream.flatten(-2)[..., :length].contiguous()


def _unpack_stream(stream: Tensor, bits: int, count: int) -> Tensor:
    """Inverse of ``_pack_stream``: uint8 [..., count]."""
    padded = functional.pad(stream, (0, -stream.shape[-1] % bits))
    groups = padded.view(*padded.shape[:-1], padded.shape[-1] // bits, bits).long()
    words = (groups << 8 * torch.arange(bits, device=stream.device)).sum(-1, keepdim=True)
    codes = words >> bits * torch.arange(8, device=stream.device) & (1 << bits) - 1
    return codes.to(torch.uint8).flatten(-2)[..., :count]


def _encode_fake(x: Tensor, bits: int, granularity: str, leading_dims: int) -> tuple[Tensor, Tensor, Tensor]:
    leading = x.shape[:leading_dims]
    codes = x.new_empty(*leading, ceil_div(_count(x.shape[leading_dims:]) * bits, 8), dtype=torch.uint8)
    of_scale = leading if granularity == "token" else x.shape[-1:]
    scale = x.new_empty(of_scale, dtype=torch.float32)
    return codes, scale, torch.empty_like(scale)


def _decode_fake(
    codes: Tensor,
    scale: Tensor,
    zero_point: Tensor,
    bits: int,
    granularity: str,
    trailing_shape: list[int],
    dtype: torch.dtype,
) -> Tensor:
    return codes.new_empty(*codes.shape[:-1], *trailing_shape, dtype=dtype)


implement("encode_activation", encode_activation_reference, _encode_fake)
implement("decode_activation", decode_activation_reference, _decode_fake)
