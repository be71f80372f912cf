"""The device order of packed weights (csrc/layout_device.h), exhaustively, on the CPU."""

import pytest

TILES = (1, 2, 3, 4, 5, 7, 8, 11)


@pytest.mark.parametrize("bits", [2, 3, 4, 5, 6, 8])
def test_every_lane_finds_its_codes(host_model, bits):
    for tiles in TILES:
        assert host_model.library.layout_check_dense(bits, tiles) is None
        assert host_model.library.layout_check_survivors(bits, tiles) is None


def test_every_lane_finds_its_metadata(host_model):
    for tiles in TILES:
        assert host_model.library.layout_check_index(tiles) is None
    assert host_model.library.layout_check_bytes() is None
