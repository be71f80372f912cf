"""How far a kernel's result may be from float64: float32 sums, one rounding of the result.

Where a kernel multiplies codes by their scale before the tensor cores, the weight is rounded to x's dtype.
"""

from torch import Tensor, bfloat16, float16, float32

ROUNDING = {float32: 2.0**-23, bfloat16: 2.0**-8, float16: 2.0**-10}
SUMS = 2.0**-21  # of the sum of absolute products
ROUNDED_WEIGHT = {bfloat16: 2.0**-8, float16: 2.0**-11}  # the same


def assert_near(got: Tensor, x: Tensor, weight: Tensor, bias: Tensor, products: float = SUMS) -> None:
    """``got`` [M, N] against x [M, K] weight [N, K] transposed + bias, all in float64.

    ``products``: error allowed of the sum of absolute products.
    """
    expected = x @ weight.T + bias
    assert got.shape == expected.shape
    if not got.numel():
        return
    bound = products * (x.abs() @ weight.abs().T + bias.abs()) + ROUNDING[got.dtype] * expected.abs()
    excess = ((got.double() - expected).abs() / bound).max()
    assert excess <= 1, f"{float(excess):.3g} times the bound"
