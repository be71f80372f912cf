"""The host model of Hopper: products of a warpgroup against plain sums, and the mistakes it has to report."""

import pytest
import torch
from test_host_model import pointer

REPORTED = {
    "not_fenced": "without wgmma.fence",
    "a_changed": "operand A of a wgmma changed",
    "never_awaited": "never waited for",
    "bytes_missing": "waits for a phase that never ends",
    "not_started": "barrier that was not published",
    "other_products": "disagree about their products",
}
SHOWN = ("not_published", "not_awaited", "stage_refilled")
NUMBERS = ("none", "not_published", "not_fenced", "not_awaited", "a_changed", "never_awaited")
NUMBERS += ("stage_refilled", "bytes_missing", "not_started", "other_products")
BY_COPY = ("stage_refilled", "bytes_missing", "not_started")


def swizzled(rows: torch.Tensor) -> torch.Tensor:
    """Rows [N, 64] of 16 bits with chunk c of 8 values at place c ^ (row % 8)."""
    places = torch.arange(8)[None, :] ^ (torch.arange(rows.shape[0]) % 8)[:, None]
    chunks = rows.reshape(-1, 8, 8)
    return chunks.gather(1, places[:, :, None].expand_as(chunks)).contiguous()


def multiply(model, columns: int, dtype: torch.dtype, bulk: bool, mistake: str) -> tuple[str | None, bool]:
    """What the model reports, and whether the product is right."""
    a, b, start = torch.randn(64, 64).to(dtype), torch.randn(columns, 64).to(dtype), torch.randn(64, columns)
    d, placed = start.clone(), swizzled(b)
    numbers = (columns, int(dtype == torch.bfloat16), int(bulk), NUMBERS.index(mistake))
    report = model.library.probe_warpgroup(pointer(a), pointer(placed), pointer(d), *numbers)
    expected = a.double() @ b.double().T + start.double()
    return report and report.decode(), bool(((d - expected).abs() < 1e-4).all())


@pytest.mark.parametrize("bulk", [False, True])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("columns", [64, 128])
def test_products_of_a_warpgroup(model, columns, dtype, bulk):
    assert multiply(model, columns, dtype, bulk, "none") == (None, True)


@pytest.mark.parametrize("mistake", REPORTED)
def test_mistake_is_reported(model, mistake):
    report, _ = multiply(model, 64, torch.float16, mistake in BY_COPY, mistake)
    assert report is not None and REPORTED[mistake] in report


@pytest.mark.parametrize("mistake", SHOWN)
def test_mistake_shows_in_the_result(model, mistake):
    assert multiply(model, 64, torch.float16, mistake in BY_COPY, mistake) == (None, False)
