"""quant_embedding: bit for bit the rows of the dequantized table."""

import pytest
import torch
from conftest import DTYPES, formats

from torchcoinfer import ops
from torchcoinfer.ops.quant_embedding import quant_embedding_reference


def table(bits=4, group_size=32, symmetric=False, rows=50, columns=70):
    return ops.quantize_pack(torch.randn(rows, columns), bits, group_size, symmetric, torch.float16)


def test_rows_of_the_table():
    indices = torch.tensor([[0, 49, 16], [15, 15, 31]])
    for bits, group_size, symmetric in formats():
        buffers = table(bits, group_size, symmetric)
        for dtype in DTYPES:
            rows = ops.dequantize(*buffers, bits, group_size, 50, 70, dtype)
            for cast in (torch.int64, torch.int32):
                call = (indices.to(cast), *buffers, bits, group_size, 50, 70, dtype)
                assert torch.equal(ops.quant_embedding(*call), rows[indices])
                assert torch.equal(quant_embedding_reference(*call), rows[indices])


def test_empty_scalar_and_strided_indices():
    buffers = table()
    rows = ops.dequantize(*buffers, 4, 32, 50, 70, torch.float32)
    for indices in (torch.zeros(0, 3, dtype=torch.long), torch.tensor(7), torch.arange(20)[::3].view(7, 1).T):
        assert torch.equal(
            ops.quant_embedding(indices, *buffers, 4, 32, 50, 70, torch.float32), rows[indices]
        )


@pytest.mark.parametrize("index", [-1, 50])
def test_index_out_of_range(index):
    with pytest.raises(RuntimeError, match=rf"quant_embedding: argument 'indices'.*< 50.*{index}"):
        ops.quant_embedding(torch.tensor([3, index]), *table(), 4, 32, 50, 70, torch.float32)
    with pytest.raises(RuntimeError, match="argument 'indices'"):
        ops.quant_embedding(torch.tensor([0.5]), *table(), 4, 32, 50, 70, torch.float32)


class Embedding(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.packed, self.scales, self.zeros = table()

    def forward(self, indices):
        return torch.ops.torchcoinfer.quant_embedding(
            indices, self.packed, self.scales, self.zeros, 4, 32, 50, 70, torch.float32
        )


def test_opcheck_script_compile_export():
    module, indices = Embedding(), torch.tensor([[1, 2, 3], [4, 5, 6]])
    call = (indices, module.packed, module.scales, module.zeros, 4, 32, 50, 70, torch.bfloat16)
    torch.library.opcheck(torch.ops.torchcoinfer.quant_embedding, call)
    expected = module(indices)
    assert torch.equal(torch.jit.script(module)(indices), expected)
    assert torch.equal(torch.compile(module, fullgraph=True, backend="aot_eager")(indices), expected)
    program = torch.export.export(module, (indices,), dynamic_shapes=({0: torch.export.Dim("batch")},))
    assert torch.equal(program.module()(indices.repeat(2, 1)), expected.repeat(2, 1, 1))
