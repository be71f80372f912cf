"""The host model of CUDA: its matrix instructions against plain sums, and the mistakes it has to report."""

import ctypes

import pytest
import torch

MISTAKES = {
    "barrier_missed": "waits at a block barrier",
    "shuffle_outside": "outside its mask",
    "shared_overrun": "beyond its dynamic shared memory",
}
NUMBERS = ("none", "no_barrier", "barrier_missed", "copy_not_awaited", "shuffle_outside", "shared_overrun")


def pointer(tensor: torch.Tensor) -> ctypes.c_void_p:
    return ctypes.c_void_p(tensor.data_ptr())


@pytest.mark.parametrize("by_ldmatrix", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_mma_16816_multiplies(model, dtype, by_ldmatrix):
    a, b, d = torch.randn(16, 16).to(dtype), torch.randn(8, 16).to(dtype), torch.zeros(16, 8)
    bfloat16 = int(dtype == torch.bfloat16)
    assert model.library.probe_multiply_16(pointer(a), pointer(b), pointer(d), bfloat16, by_ldmatrix) is None
    assert torch.equal(d, (a.double() @ b.double().T).float())


@pytest.mark.parametrize("a_signed", [0, 1])
@pytest.mark.parametrize("b_signed", [0, 1])
def test_mma_16832_multiplies(model, a_signed, b_signed):
    kinds = (torch.uint8, torch.int8)
    a = torch.randint(0, 256, (16, 32), dtype=torch.uint8).view(kinds[a_signed])
    b = torch.randint(0, 256, (8, 32), dtype=torch.uint8).view(kinds[b_signed])
    d = torch.zeros(16, 8, dtype=torch.int32)
    assert model.library.probe_multiply_8(pointer(a), pointer(b), pointer(d), a_signed, b_signed) is None
    assert torch.equal(d, a.int() @ b.int().T)


@pytest.mark.parametrize("selector", [0, 1])
def test_mma_sp_multiplies_what_is_kept(model, selector):
    kept, b = torch.randn(16, 8, 2).half(), torch.randn(8, 32).half()
    first = torch.randint(0, 3, (16, 8))
    second = first + 1 + (torch.rand(16, 8) * (3 - first)).long()
    index = (first | second << 2).to(torch.uint8)
    dense = torch.zeros(16, 8, 4, dtype=torch.float64)
    dense.scatter_(2, torch.stack((first, second), 2), kept.double())
    d = torch.zeros(16, 8)
    assert (
        model.library.probe_multiply_sparse(pointer(kept), pointer(index), pointer(b), pointer(d), selector)
        is None
    )
    assert torch.equal(d, (dense.flatten(1) @ b.double().T).float())


def reverse(model, mistake: str) -> tuple[str | None, bool]:
    """What the model reports, and whether the result is right."""
    x, y = torch.arange(64, dtype=torch.int32), torch.zeros(64, dtype=torch.int32)
    report = model.library.probe_reverse(pointer(x), pointer(y), NUMBERS.index(mistake))
    return report and report.decode(), torch.equal(y, x.flip(0))


def test_right_kernel_is_right(model):
    assert reverse(model, "none") == (None, True)


@pytest.mark.parametrize("mistake", MISTAKES)
def test_mistake_is_reported_once(model, mistake):
    report, _ = reverse(model, mistake)
    assert report is not None and MISTAKES[mistake] in report
    assert reverse(model, "none") == (None, True)


@pytest.mark.parametrize("mistake", ["no_barrier", "copy_not_awaited"])
def test_missing_wait_shows_in_the_result(model, mistake):
    assert reverse(model, mistake) == (None, False)
