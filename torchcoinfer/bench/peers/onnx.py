"""ONNX Runtime's MatMulNBits: 4-bit weights in groups of 32, accuracy level 4 (int8 activations inside)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from torchcoinfer.bench.cases import Case
from torchcoinfer.bench.timing import Contender, copies_beyond_cache
from torchcoinfer.errors import MissingExtra

GROUP = 32  # its fastest; 128 is slower on AVX-512


def matmul_nbits(case: Case, threads: int) -> Contender:
    """One session a copy of the weight, x float32 and y bound to memory of their own.

    Raises:
        MissingExtra: onnx or onnxruntime is not installed.
    """
    try:
        import onnxruntime
        from onnx import TensorProto, helper, numpy_helper
    except ImportError as error:
        raise MissingExtra(error.name or "onnxruntime", "bench") from error
    groups = -(-case.columns // GROUP)
    moved = case.rows * groups * (GROUP // 2 + 4)
    generator = np.random.default_rng(0)
    x = generator.standard_normal((case.tokens, case.columns), dtype=np.float32)

    def session() -> Any:
        packed = generator.integers(0, 256, (case.rows, groups, GROUP // 2), dtype=np.uint8)
        scales = generator.random(case.rows * groups, dtype=np.float32)
        node = helper.make_node(
            "MatMulNBits", ["x", "packed", "scales"], ["y"], domain="com.microsoft",
            K=case.columns, N=case.rows, bits=4, block_size=GROUP, accuracy_level=4,
        )  # fmt: skip
        graph = helper.make_graph(
            [node],
            "linear",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, list(x.shape))],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, [case.tokens, case.rows])],
            [numpy_helper.from_array(packed, "packed"), numpy_helper.from_array(scales, "scales")],
        )
        opsets = [helper.make_opsetid("", 21), helper.make_opsetid("com.microsoft", 1)]
        model = helper.make_model(graph, opset_imports=opsets, ir_version=10)
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        # a waiting session would otherwise spin on a core that the next contender needs
        options.add_session_config_entry("session.force_spinning_stop", "1")
        return onnxruntime.InferenceSession(
            model.SerializeToString(), options, providers=["CPUExecutionProvider"]
        )

    calls = [_bound(session(), x) for _ in range(copies_beyond_cache(moved))]
    return Contender("onnxruntime MatMulNBits", calls, moved, case.flops, pool="onnxruntime")


def _bound(session: Any, x: np.ndarray) -> Callable[[], Any]:
    binding = session.io_binding()
    binding.bind_cpu_input("x", x)
    binding.bind_output("y", "cpu")
    return lambda: session.run_with_iobinding(binding)
