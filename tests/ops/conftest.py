import itertools
import zlib

import pytest
import torch

from torchcoinfer import ops

BITS = (2, 3, 4, 5, 6, 8)
GROUP_SIZES = (0, 32, 64, 128)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
UNIT_ROUNDOFF = {torch.float32: 2.0**-24, torch.bfloat16: 2.0**-8, torch.float16: 2.0**-11}


@pytest.fixture(autouse=True)
def _reproducible(request):
    torch.manual_seed(zlib.crc32(request.node.nodeid.encode()))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(params=ops.cpu_isas())
def isa(request, monkeypatch):
    """Every instruction-set path that this machine has."""
    monkeypatch.setenv("TORCHCOINFER_ISA", request.param)
    return request.param


def formats():
    """All (bits, group_size, symmetric) of the dense format."""
    return itertools.product(BITS, GROUP_SIZES, (True, False))
