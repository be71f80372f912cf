"""Run by test_library.py in a copy of the package that has no compiled library."""

import warnings

with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    import torch

    from torchcoinfer import ops
loud = [w for w in caught if "WITHOUT its compiled kernels" in str(w.message)]
assert len(loud) == 1 and not ops.has_kernels(), caught
assert ops.cpu_isas() == ("reference",)
weight, x = torch.randn(20, 64), torch.randn(3, 64)
buffers = ops.quantize_pack(weight, 8, 32, False, torch.float32)
y = ops.quant_linear(x, *buffers, None, 8, 32, 20)
assert (y - x @ weight.T).abs().max() < 0.2


class Module(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.packed, self.scales, self.zeros = buffers

    def forward(self, x):
        return torch.ops.torchcoinfer.quant_linear(x, self.packed, self.scales, self.zeros, None, 8, 32, 20)


assert torch.equal(torch.jit.script(Module())(x), y)
program = torch.export.export(Module(), (x,), dynamic_shapes=({0: torch.export.Dim("batch")},))
assert torch.equal(program.module()(x[:2]), y[:2])
try:
    ops.quant_linear(x, *buffers, None, 7, 32, 20)
except ValueError as error:
    assert "argument 'bits'" in str(error)
else:
    raise AssertionError("bits 7 was accepted")
