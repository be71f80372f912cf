"""llama.cpp's ggml from the shared libraries of its Python package, called through ctypes.

The weights lie in the buffer type that ggml itself prefers for them (AMX, or repacked for AVX-512): in plain
memory its product is four times slower.
"""

from __future__ import annotations

import ctypes
import importlib.util
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from torchcoinfer.bench.cases import Case
from torchcoinfer.bench.timing import Contender, copies_beyond_cache
from torchcoinfer.errors import KernelError, MissingExtra

FLOAT32 = 0  # enum ggml_type
TYPES = {"Q4_0": (2, 32, 18), "Q4_K": (12, 256, 144)}  # name -> (enum ggml_type, weights a block, its bytes)
LIBRARIES = ("libggml-base.so", "libggml-cpu.so", "libggml.so")
CONTEXT_BYTES = 1 << 18
SAMPLE_ROWS = 16  # rows that are quantized; the weight repeats them, for its content does not change the time


class _InitParams(ctypes.Structure):
    _fields_ = [
        ("mem_size", ctypes.c_size_t),
        ("mem_buffer", ctypes.c_void_p),
        ("no_alloc", ctypes.c_bool),
    ]


class Library:
    """The few functions of libggml that a matrix product needs."""

    def __init__(self, folder: Path):
        self._parts = [
            ctypes.CDLL(str(folder / name), ctypes.RTLD_GLOBAL)
            for name in LIBRARIES
            if (folder / name).exists()
        ]
        pointer, size, long, number = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int64, ctypes.c_int
        self.init = self._function("ggml_init", pointer, _InitParams)
        self.free = self._function("ggml_free", None, pointer)
        self.new_2d = self._function("ggml_new_tensor_2d", pointer, pointer, number, long, long)
        self.mul_mat = self._function("ggml_mul_mat", pointer, pointer, pointer, pointer)
        self.new_graph = self._function("ggml_new_graph", pointer, pointer)
        self.expand = self._function("ggml_build_forward_expand", None, pointer, pointer)
        self.allocate = self._function("ggml_backend_alloc_ctx_tensors_from_buft", pointer, pointer, pointer)
        self.free_buffer = self._function("ggml_backend_buffer_free", None, pointer)
        self.set = self._function("ggml_backend_tensor_set", None, pointer, pointer, size, size)
        self.get = self._function("ggml_backend_tensor_get", None, pointer, pointer, size, size)
        self.quantize = self._function(
            "ggml_quantize_chunk", size, number, pointer, pointer, long, long, long, pointer
        )
        self.set_threads = self._function("ggml_backend_cpu_set_n_threads", None, pointer, number)
        self.compute = self._function("ggml_backend_graph_compute", number, pointer, pointer)
        self.supports = self._function("ggml_backend_dev_supports_op", ctypes.c_bool, pointer, pointer)
        self.plain = self._function("ggml_backend_cpu_buffer_type", pointer)()
        self.backend = self._function("ggml_backend_cpu_init", pointer)()
        registry = self._function("ggml_backend_cpu_reg", pointer)()
        self.device = self._function("ggml_backend_reg_dev_get", pointer, pointer, size)(registry, 0)
        self.buffer_types = [*self._extra_buffer_types(registry), self.plain]
        self.buffer_name = self._function("ggml_backend_buft_name", ctypes.c_char_p, pointer)
        # it would tell of every weight that it repacks
        self._quiet = ctypes.CFUNCTYPE(None, number, ctypes.c_char_p, pointer)(lambda *_: None)
        self._function("ggml_log_set", None, ctypes.c_void_p, pointer)(self._quiet, None)

    def _function(self, name: str, result: Any, *arguments: Any) -> Any:
        for part in self._parts:
            if hasattr(part, name):
                found = getattr(part, name)
                found.restype, found.argtypes = result, list(arguments)
                return found
        raise KernelError("a function of ggml", got=f"{name} is not in {[p._name for p in self._parts]}")

    def _extra_buffer_types(self, registry: int) -> list[int]:
        """What the CPU offers beside plain memory, best first."""
        lookup = self._function(
            "ggml_backend_reg_get_proc_address", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p
        )
        address = lookup(registry, b"ggml_backend_dev_get_extra_bufts")
        if not address:
            return []
        listed = ctypes.CFUNCTYPE(ctypes.POINTER(ctypes.c_void_p), ctypes.c_void_p)(address)(self.device)
        found: list[int] = []
        while listed[len(found)]:
            found.append(listed[len(found)])
        return found


@cache
def library() -> Library:
    """The installed one, loaded once.

    Raises:
        MissingExtra: llama-cpp-python, or the ggml library within, is not installed.
    """
    spec = importlib.util.find_spec("llama_cpp")  # importing the package would load all of llama.cpp
    folder = Path(spec.origin).parent / "lib" if spec and spec.origin else None
    if folder is None or not (folder / LIBRARIES[0]).exists():
        raise MissingExtra("llama-cpp-python", "bench-ggml")
    return Library(folder)


class Product:
    """y = x W^T with W of one quantized type; memory is freed with the object."""

    def __init__(
        self, ggml: Library, kind: str, case: Case, blocks: np.ndarray, x: np.ndarray, buffer_type: int
    ):
        self._ggml, self._case, self._buffers = ggml, case, []
        self._contexts = [ggml.init(_InitParams(CONTEXT_BYTES, None, True)) for _ in range(2)]
        weights, rest = self._contexts
        weight = ggml.new_2d(weights, TYPES[kind][0], case.columns, case.rows)
        source = ggml.new_2d(rest, FLOAT32, case.columns, case.tokens)
        self._result = ggml.mul_mat(rest, weight, source)
        self._graph = ggml.new_graph(rest)
        ggml.expand(self._graph, self._result)
        self._buffers = [ggml.allocate(weights, buffer_type), ggml.allocate(rest, ggml.plain)]
        if not ggml.supports(ggml.device, self._result):
            told = f"{case} in {ggml.buffer_name(buffer_type).decode()}"
            raise KernelError(f"ggml {kind}", got=told, expected="a shape that this buffer type serves")
        ggml.set(weight, blocks.ctypes.data, 0, blocks.nbytes)
        ggml.set(source, x.ctypes.data, 0, x.nbytes)

    def __call__(self) -> None:
        self._ggml.compute(self._ggml.backend, self._graph)

    def result(self) -> np.ndarray:
        """y of the last call, float32 [tokens, rows]."""
        y = np.empty((self._case.tokens, self._case.rows), np.float32)
        self._ggml.get(self._result, y.ctypes.data, 0, y.nbytes)
        return y

    def __del__(self) -> None:
        for buffer in self._buffers:
            self._ggml.free_buffer(buffer)
        for context in self._contexts:
            self._ggml.free(context)


def quantized(ggml: Library, kind: str, weight: np.ndarray) -> np.ndarray:
    """ggml's blocks of a float32 [rows, K] weight: uint8 [rows, bytes a row].

    Raises:
        KernelError: K is no multiple of the block.
    """
    type_id, block, block_bytes = TYPES[kind]
    rows, columns = weight.shape
    if columns % block:
        raise KernelError(f"ggml {kind}", got=f"K = {columns}", expected=f"a multiple of {block}")
    made = np.empty((rows, columns // block * block_bytes), np.uint8)
    ggml.quantize(type_id, weight.ctypes.data, made.ctypes.data, 0, rows, columns, None)
    return made


def matmul(kind: str, case: Case, threads: int) -> Contender:
    """``ggml_mul_mat`` with float32 x, which it quantizes to int8 in the call.

    Raises:
        MissingExtra: llama-cpp-python is not installed.
        KernelError: a shape that ggml does not serve from its fast buffer type.
    """
    ggml = library()
    generator = np.random.default_rng(0)
    sample = generator.standard_normal((SAMPLE_ROWS, case.columns), dtype=np.float32)
    rows = quantized(ggml, kind, sample)
    blocks = np.ascontiguousarray(np.resize(rows, (case.rows, rows.shape[1])))
    x = generator.standard_normal((case.tokens, case.columns), dtype=np.float32)
    ggml.set_threads(ggml.backend, threads)
    buffer_type = ggml.buffer_types[0]
    calls: list[Callable[[], None]] = [
        Product(ggml, kind, case, blocks, x, buffer_type) for _ in range(copies_beyond_cache(blocks.nbytes))
    ]
    return Contender(f"ggml {kind}", calls, blocks.nbytes, case.flops, pool="ggml")
