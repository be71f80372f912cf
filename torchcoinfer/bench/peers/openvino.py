"""OpenVINO: uint4 weights in groups of 128 with zero points, decompressed or multiplied in the plugin."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from torchcoinfer.bench.cases import GROUP_SIZE, Case
from torchcoinfer.bench.timing import Contender, copies_beyond_cache
from torchcoinfer.errors import KernelError, MissingExtra


def four_bit(case: Case, threads: int) -> Contender:
    """One compiled model a copy of the weight, float32 x, the plugin's own choice of inner precision.

    Raises:
        MissingExtra: openvino is not installed.
        KernelError: K is no multiple of 128.
    """
    try:
        import openvino
        from openvino import opset13 as ops
    except ImportError as error:
        raise MissingExtra("openvino", "bench") from error
    if case.columns % GROUP_SIZE:
        raise KernelError("openvino u4", got=f"K = {case.columns}", expected="a multiple of 128")
    groups = case.columns // GROUP_SIZE
    moved = case.rows * case.columns // 2 + case.rows * groups * 5 // 2
    generator = np.random.default_rng(0)
    x = generator.standard_normal((case.tokens, case.columns), dtype=np.float32)
    core = openvino.Core()
    settings = {"INFERENCE_NUM_THREADS": threads, "NUM_STREAMS": 1, "PERFORMANCE_HINT": "LATENCY"}

    def compiled() -> Any:
        def four_bits(columns: int) -> Any:
            data = generator.integers(0, 256, case.rows * groups * columns // 2, dtype=np.uint8)
            tensor = openvino.Tensor(data, openvino.Shape([case.rows, groups, columns]), openvino.Type.u4)
            return ops.convert(ops.constant(tensor, shared_memory=False), openvino.Type.f16)

        scale = ops.constant(generator.random((case.rows, groups, 1)).astype(np.float16))
        weight = ops.multiply(ops.subtract(four_bits(GROUP_SIZE), four_bits(1)), scale)
        flat = ops.reshape(weight, np.array([case.rows, case.columns]), special_zero=False)
        source = ops.parameter([case.tokens, case.columns], openvino.Type.f32)
        y = ops.matmul(source, ops.convert(flat, openvino.Type.f32), transpose_a=False, transpose_b=True)
        return core.compile_model(openvino.Model([y], [source]), "CPU", settings)

    calls = [_request(compiled(), x) for _ in range(copies_beyond_cache(moved))]
    return Contender("openvino u4", calls, moved, case.flops, pool="openvino")


def _request(model: Any, x: np.ndarray) -> Callable[[], Any]:
    import openvino

    request = model.create_infer_request()
    request.set_input_tensor(openvino.Tensor(x, shared_memory=True))
    return request.infer
