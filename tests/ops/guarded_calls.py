"""Random calls of the built ops, every argument in memory that ends, or begins, at a page nobody may touch.

test_guard_pages.py runs this in a process of its own, for an access out of bounds ends it with a
segmentation fault. Arguments: cases, first seed. Each result is compared with the scalar path's on ordinary
memory. The case that runs is in the file "case" of the working folder; the last line printed is a count.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import random
import sys
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from torchcoinfer import ops

ROOM = 48 * mmap.PAGESIZE
BITS, GROUP_SIZES = (2, 3, 4, 5, 6, 8), (0, 32, 64, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
UNIT = {torch.float32: 2e-5, torch.bfloat16: 3e-2, torch.float16: 4e-3}
PROT_NONE = 0


class Guarded:
    """Rooms of memory, each between two pages without access; a tensor moves to one end of the next room."""

    def __init__(self, rooms: int, pick: random.Random, at_end: Callable[[], int] | None = None):
        library = ctypes.CDLL(None, use_errno=True)
        library.mprotect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        self._at_end = at_end or (lambda: pick.randrange(2))
        self._next, self._mapped, self._rooms = 0, [], []
        for _ in range(rooms):
            mapped = mmap.mmap(-1, ROOM + 2 * mmap.PAGESIZE)
            start = ctypes.addressof(ctypes.c_char.from_buffer(mapped))
            for page in (start, start + mmap.PAGESIZE + ROOM):
                if library.mprotect(page, mmap.PAGESIZE, PROT_NONE):
                    raise OSError(ctypes.get_errno(), "mprotect")
            self._mapped.append(mapped)
            self._rooms.append(start + mmap.PAGESIZE)

    def move(self, tensor: Tensor | None) -> Tensor | None:
        """The same values and strides at the end (or the beginning) of a room."""
        if tensor is None or tensor.numel() == 0:
            return tensor
        span = 1 + sum((size - 1) * stride for size, stride in zip(tensor.shape, tensor.stride()))
        flat = tensor.as_strided((span,), (1,))
        assert flat.nbytes <= ROOM, tensor.shape
        room = self._rooms[self._next % len(self._rooms)]
        self._next += 1
        start = room + (ROOM - flat.nbytes) * self._at_end()
        memory = (ctypes.c_char * flat.nbytes).from_address(start)
        placed = torch.frombuffer(memory, dtype=flat.dtype, count=span)
        return placed.copy_(flat).as_strided(tensor.shape, tensor.stride())


Call = tuple[Callable[..., Tensor], list, float, str]


def floats(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return (2 * torch.rand(shape) - 1).to(dtype)


def codes_of(bits: int, *shape: int) -> Tensor:
    return torch.randint(0, 2**bits, shape, dtype=torch.uint8)


def grouped(pick: random.Random, bits: int, group_size: int, N: int, K: int) -> list[Tensor | None]:
    """Scales and, half of the time, zero points."""
    shape = (-(-N // 16), -(-K // group_size) if group_size else 1, 16)
    scales = (0.5 + torch.rand(shape) / 2).to(pick.choice(DTYPES))
    return [scales, codes_of(bits, *shape) if pick.randrange(2) else None]


def rows(pick: random.Random, K: int) -> Tensor:
    """x [M, K], M from 0 on, rows now and then apart or transposed."""
    M, dtype = pick.choice((0, 1, 1, 2, 3, 4, 5, 6, 7, 8, 9, 16, 17, 33)), pick.choice(DTYPES)
    way = pick.randrange(3)
    if way == 0:
        return floats(M, K + pick.randrange(1, 9), dtype=dtype)[:, :K]
    return floats(K, M, dtype=dtype).T if way == 1 else floats(M, K, dtype=dtype)


def largest(bits: int, K: int) -> float:
    return 2.0**bits * (K + 1) ** 0.5


def linear(pick: random.Random) -> Call:
    bits, group_size, N, K = (
        pick.choice(BITS),
        pick.choice(GROUP_SIZES),
        pick.randint(1, 70),
        pick.randint(1, 300),
    )
    packed, activation_bits = ops.pack_codes(codes_of(bits, N, K), bits), pick.choice((0, 8))
    bias = floats(N, dtype=pick.choice(DTYPES)) if pick.randrange(2) else None
    weight = [packed, *grouped(pick, bits, group_size, N, K), bias]
    given = [rows(pick, K), *weight, bits, group_size, N, activation_bits]
    return (
        ops.quant_linear,
        given,
        largest(bits, K),
        f"bits {bits} group {group_size} activations {activation_bits}",
    )


def sparse(pick: random.Random) -> Call:
    bits, N, K, paired = pick.choice((0, *BITS)), pick.randint(1, 70), pick.randint(1, 300), pick.randrange(2)
    group_size = pick.choice(GROUP_SIZES) if bits else 0
    values = codes_of(bits, N, K) if bits else floats(N, K, dtype=pick.choice(DTYPES))
    if paired:
        mask = (torch.arange(K) % 4 < 2).expand(N, K).contiguous()
    else:
        mask = torch.rand(N, K) < pick.choice((0.0, 0.05, 0.2, 0.5, 0.9, 1.0))
    stored = (ops.sparse24_pack if paired else ops.bitmap_pack)(values, mask, bits)
    scaled = grouped(pick, bits, group_size, N, K) if bits else [None, None]
    bias, activation_bits = (floats(N) if pick.randrange(2) else None), pick.choice((0, 8)) if bits else 0
    given = [rows(pick, K), *stored, *scaled, bias, bits, group_size, N, activation_bits]
    op = ops.sparse24_linear if paired else ops.bitmap_linear
    return op, given, largest(bits, K), f"bits {bits} group {group_size} activations {activation_bits}"


def convolution(pick: random.Random) -> Call:
    groups = pick.choice((1, 1, 2, 3, 8))
    inside, outside = (1, 1) if groups == 8 else (pick.randint(1, 9), pick.randint(1, 20))
    kernel, stride = [pick.randint(1, 3) for _ in "hw"], [pick.randint(1, 2) for _ in "hw"]
    padding, dilation = [pick.randrange(3) for _ in "hw"], [pick.randint(1, 2) for _ in "hw"]
    height, width = (pick.randint(1 + (k - 1) * d, 14) for k, d in zip(kernel, dilation))
    N, K = groups * outside, inside * kernel[0] * kernel[1]
    bits, group_size = pick.choice(BITS), pick.choice(GROUP_SIZES)
    x = floats(pick.randint(1, 2), groups * inside, height, width, dtype=pick.choice(DTYPES))
    if pick.randrange(2):
        x = x.to(memory_format=torch.channels_last)
    weight = [ops.pack_codes(codes_of(bits, N, K), bits), *grouped(pick, bits, group_size, N, K), None]
    shape = [bits, group_size, N, kernel, stride, padding, dilation, groups, pick.choice((0, 8))]
    return ops.quant_conv2d, [x, *weight, *shape], largest(bits, K), str(shape)


def embedding(pick: random.Random) -> Call:
    bits, group_size, N, K = (
        pick.choice(BITS),
        pick.choice(GROUP_SIZES),
        pick.randint(1, 70),
        pick.randint(1, 300),
    )
    packed, index = ops.pack_codes(codes_of(bits, N, K), bits), torch.randint(0, N, (pick.randrange(9),))
    given = [
        index,
        packed,
        *grouped(pick, bits, group_size, N, K),
        bits,
        group_size,
        N,
        K,
        pick.choice(DTYPES),
    ]
    return ops.quant_embedding, given, 2.0**bits, f"bits {bits} group {group_size}"


def storage(pick: random.Random) -> Call:
    bits, N, K = pick.choice(BITS), pick.randint(1, 70), pick.randint(1, 300)
    codes = codes_of(bits, N, K)
    if pick.randrange(2):
        return ops.pack_codes, [codes, bits], 0.0, f"bits {bits}"
    return ops.unpack_codes, [ops.pack_codes(codes, bits), bits, N, K], 0.0, f"bits {bits}"


def run(seed: int, memory: Guarded, isas: list[str], pick: random.Random) -> str | None:
    """One case; what was wrong, or None."""
    pick.seed(seed)
    torch.manual_seed(seed)
    make = pick.choice((linear, linear, sparse, sparse, convolution, embedding, storage))
    op, given, top, told = make(pick)
    shapes = [tuple(value.shape) for value in given if isinstance(value, Tensor)]
    isa = pick.choice(isas)
    case = f"seed {seed}: {op.__name__} on {isa}, {told}, {shapes}"
    CASE_FILE.write_text(case)
    os.environ["TORCHCOINFER_ISA"] = "scalar"
    truth = op(*given)
    os.environ["TORCHCOINFER_ISA"] = isa
    found = op(*(memory.move(value) if isinstance(value, Tensor) else value for value in given))
    if truth.dtype == torch.uint8:
        return None if torch.equal(found, truth) else case
    off = (found.double() - truth.double()).abs().max() if truth.numel() else torch.zeros(())
    fits = found.shape == truth.shape and bool(off <= UNIT[truth.dtype] * top)
    return None if fits else f"{case}: off by {float(off):g} of {top:g}"


CASE_FILE = Path("case")


def main(cases: int, seed: int) -> int:
    torch.set_num_threads(1)
    pick = random.Random(seed)
    memory, isas = Guarded(8, pick), ops.cpu_isas()
    wrong = [told for i in range(cases) if (told := run(seed + i, memory, isas, pick)) is not None]
    print(*wrong, sep="\n")
    print(f"{cases} cases, {len(wrong)} wrong")
    return bool(wrong)


if __name__ == "__main__":
    sys.exit(main(*map(int, sys.argv[1:])))
