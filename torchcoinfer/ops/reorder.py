"""The device order of packed weights (format: ``csrc/layout_device.h``), in place."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from torchcoinfer.errors import ArgumentError
from torchcoinfer.ops.library import implement
from torchcoinfer.ops.pack import BLOCK_N, PLANES, TILE_K, check_format

CANONICAL_LAYOUT, DEVICE_LAYOUT = 0, 1
KINDS = ("codes", "survivors", "index")
QUAD = 4  # tiles that are permuted together
LANES, ROUND_BYTES, LANE_BYTES = 32, 512, 16
TILE_SURVIVORS, CHUNK, GROUP_K = 256, 64, 4


class Move(NamedTuple):
    """Where fields of ``bits`` bits lie in the canonical and in the device order: byte and lowest bit."""

    bits: int
    here_byte: Tensor
    here_shift: Tensor
    there_byte: Tensor
    there_shift: Tensor


def reorder_(buffer: Tensor, kind: str, bits: int, to_device: bool) -> None:
    """Permutes one packed buffer in place, from the canonical order to the device order or back.

    Args:
        buffer: contiguous [NB, KT, bytes or values of a tile]: ``packed`` ("codes"), or of 2:4 ``values``
            ("survivors") or ``index``.
        bits: of the codes; 0 for float survivors; of no meaning for "index".

    Raises:
        RuntimeError, ArgumentError: unknown kind or bits, another shape.
    """
    torch.ops.torchcoinfer.reorder_(buffer, kind, bits, to_device)


def reorder_reference(buffer: Tensor, kind: str, bits: int, to_device: bool) -> None:
    if kind not in KINDS:
        fact = "torchcoinfer::reorder_: argument 'kind'"
        raise ArgumentError(fact, got=kind, expected="'codes', 'survivors' or 'index'")
    if kind == "codes" or (kind == "survivors" and bits):
        check_format("reorder_", bits)
    tiles = buffer.shape[1]
    whole = tiles // QUAD * QUAD
    if whole:
        quads = buffer[:, :whole].unflatten(1, (-1, QUAD)).flatten(2).flatten(0, 1)
        moved = _permuted(quads, kind, bits, QUAD, to_device)
        buffer[:, :whole] = moved.view(buffer.shape[0], whole, -1)
    if tiles > whole:
        alone = buffer[:, whole:].flatten(0, 1)
        moved = _permuted(alone, kind, bits, 1, to_device)
        buffer[:, whole:] = moved.view(buffer.shape[0], -1, alone.shape[-1])


def _permuted(units: Tensor, kind: str, bits: int, count: int, to_device: bool) -> Tensor:
    """Units of ``count`` tiles [units, bytes or values] in the other order."""
    if kind == "survivors" and bits == 0:
        item = torch.arange(count * TILE_SURVIVORS)
        place = item // TILE_SURVIVORS * TILE_SURVIVORS + _element(item % TILE_SURVIVORS)
        order = place.argsort() if to_device else place
        return units[:, order.to(units.device)]
    result = torch.zeros_like(units)
    for move in _moves(kind, bits, count):
        here, there = (move.here_byte, move.here_shift), (move.there_byte, move.there_shift)
        source, target = (here, there) if to_device else (there, here)
        field = units[:, source[0].to(units.device)] >> source[1].to(units) & (1 << move.bits) - 1
        result.index_add_(1, target[0].to(units.device), field << target[1].to(units))
    return result


def _moves(kind: str, bits: int, count: int) -> list[Move]:
    if kind == "index":
        return [_index_move(count)]
    moves, shift = [], 0
    for p in PLANES[bits]:
        moves.append((_code_move if kind == "codes" else _survivor_move)(p, shift, bits, count))
        shift += p
    return moves


def _code_move(p: int, shift: int, bits: int, count: int) -> Move:
    item = torch.arange(count * BLOCK_N * TILE_K)
    u, n, k = item // (BLOCK_N * TILE_K), item // TILE_K % BLOCK_N, item % TILE_K
    vector, inside = k // (TILE_K // p), k % (TILE_K // p)
    here = 64 * bits * u + 64 * shift + 64 * vector + 4 * n + inside % 4
    lane, h, i = n % 8 * 4 + k // 8, n // 8, k % 8
    if p == 8:
        word, bit = 2 * h + i // 4, 8 * (i % 4)
    elif p == 4:
        word, bit = h, 4 * (i // 2) + 16 * (i % 2)
    else:
        word, bit = 0 * k, p * (4 * h + i // 2) + 16 * (i % 2)
    if count == 1:
        bit = bit - 8 * (i % 2) if p == 1 else bit
        byte = 64 * shift + lane * 2 * p + 4 * word + bit // 8
    elif p == 1:
        bit = bit + 8 * (u % 2)
        byte = QUAD * 64 * shift + 8 * lane + 4 * (u // 2) + bit // 8
    else:
        v = u * (p // 2) + word
        byte = QUAD * 64 * shift + v // 4 * ROUND_BYTES + LANE_BYTES * lane + 4 * (v % 4) + bit // 8
    return Move(p, here, p * (inside // 4), byte, bit % 8)


def _survivor_parts(item: Tensor) -> tuple[Tensor, Tensor]:
    """Lane and place j among its 8 of a tile's survivors."""
    group, n, slot = item // (2 * BLOCK_N), item // 2 % BLOCK_N, item % 2
    return n % 8 * 4 + group % 4, 2 * (n // 8 + 2 * (group // 4)) + slot


def _element(item: Tensor) -> Tensor:
    lane, j = _survivor_parts(item)
    return 8 * lane + j


def _survivor_move(p: int, shift: int, bits: int, count: int) -> Move:
    item = torch.arange(count * TILE_SURVIVORS)
    u, of_tile = item // TILE_SURVIVORS, item % TILE_SURVIVORS
    i = of_tile % CHUNK
    here = 32 * bits * u + of_tile // CHUNK * 8 * bits + 8 * shift + i % (8 * p)
    lane, j = _survivor_parts(of_tile)
    r, slot = j // 2, j % 2
    if count == 1:
        bit = 8 * j if p == 8 else p * r + 4 * p * slot
        byte = LANES * shift + lane * p + bit // 8
    else:
        v, bit = {
            8: (2 * u + j // 4, 8 * (j % 4)),
            4: (u, 4 * r + 16 * slot),
            2: (u // 2, 8 * (u % 2) + 2 * r + 16 * slot),
            1: (0 * u, 4 * u + r + 16 * slot),
        }[p]
        words = min(p, 4)
        byte = QUAD * LANES * shift + v // words * 128 * words + 4 * (words * lane + v % words) + bit // 8
    return Move(p, here, p * (i // (8 * p)), byte, bit % 8)


def _index_move(count: int) -> Move:
    item = torch.arange(count * BLOCK_N * TILE_K // GROUP_K)
    u, group, n = item // 128, item // BLOCK_N % 8, item % BLOCK_N
    g, h, nibble = n % 8, group // 4, group % 4 + 4 * (n // 8)
    if count == 1:
        byte = 4 * (2 * g + h) + nibble // 2
    else:
        byte = 8 * (4 * g + 2 * (u % 2) + h) + 4 * (u // 2) + nibble // 2
    return Move(4, 64 * u + 8 * group + n // 2, 4 * (n % 2), byte, 4 * (nibble % 2))


def _reorder_fake(buffer: Tensor, kind: str, bits: int, to_device: bool) -> None:
    return None


implement("reorder_", reorder_reference, _reorder_fake)
