"""Numbers that make no sense are refused by name; the limits that make sense are not."""

import math
import warnings

import numpy as np
import pytest

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory import bounds
from torchcoinfer.theory.bounds_codes import (
    best_joint_l1,
    best_uniform_grid,
    blahut_arimoto,
    exponential_rate_point,
    lloyd_max,
    lloyd_max_l1,
    lloyd_max_mse,
    uniform_grid_l1,
)
from torchcoinfer.theory.bounds_network import reverse_water_filling, worst_case
from torchcoinfer.theory.resources import (
    Q_DEVICE,
    Q_SERVER,
    Radio,
    Stage,
    largest_load,
    least_energy,
    least_energy_with_link,
    pruned_split,
    quantized_split,
)

RADIO = Radio(1e6, 10.0, 1.0)
COIN, HAMMING = [0.5, 0.5], 1.0 - np.eye(2)
LAWS = (
    bounds.lower_distortion, bounds.upper_distortion, bounds.laplacian_distortion, bounds.laplacian_rate,
    bounds.fixed_rate_l1, bounds.entropy_coded_l1, bounds.shannon_mse, bounds.fixed_rate_mse,
    bounds.entropy_coded_mse, bounds.pruning_l1, bounds.pruning_mse,
)  # fmt: skip
LAW_CASES = {
    f"{law.__name__}{given}": (law, given)
    for law in LAWS
    for given in [(0.5, -1.0), (0.5, 0.0), (0.5, math.nan), (-1.0, 1.0), (math.nan, 1.0), ([0.5, -1.0], 1.0)]
}
CASES = {
    "rate of a code": (bounds.joint_rate, (0.5, -1.0)),
    "joint NaN": (bounds.joint_l1, (0.5, math.nan)),
    "zero fraction": (bounds.optimal_zero_fraction, (-1.0,)),
    "fit words": (bounds.fit_laplace, ("abc",)),
    "fit ragged": (bounds.fit_laplace, ([[1.0], [1.0, 2.0]],)),
    "fit complex": (bounds.fit_laplace, ([1j],)),
    "lloyd half level": (lloyd_max, (2.5,)),
    "lloyd NaN": (lloyd_max, (math.nan,)),
    "lloyd l1": (lloyd_max_l1, (-1,)),
    "lloyd mse": (lloyd_max_mse, (1.5,)),
    "grid of one bit": (best_uniform_grid, (1,)),
    "grid of 4.5 bits": (best_uniform_grid, (4.5,)),
    "grid step": (uniform_grid_l1, (-0.1, 4)),
    "grid step NaN": (uniform_grid_l1, ([0.1, math.nan], 4)),
    "joint code below 0": (best_joint_l1, (-1,)),
    "joint code NaN": (best_joint_l1, (math.nan,)),
    "source negative": (blahut_arimoto, ([1.5, -0.5], HAMMING, 1.0)),
    "source sum": (blahut_arimoto, ([0.5, 0.6], HAMMING, 1.0)),
    "source NaN": (blahut_arimoto, ([0.5, math.nan], HAMMING, 1.0)),
    "slope": (blahut_arimoto, (COIN, HAMMING, -1.0)),
    "slope NaN": (blahut_arimoto, (COIN, HAMMING, math.nan)),
    "distortion NaN": (blahut_arimoto, (COIN, HAMMING * math.nan, 1.0)),
    "distortion infinite": (blahut_arimoto, (COIN, HAMMING + math.inf, 1.0)),
    "shapes": (blahut_arimoto, ([1 / 3] * 3, HAMMING, 1.0)),
    "dimensions": (blahut_arimoto, (COIN, [0.0, 1.0], 1.0)),
    "steps": (blahut_arimoto, (COIN, HAMMING, 1.0, 1e-4, 0)),
    "rate point": (exponential_rate_point, (-2.0,)),
    "water NaN": (reverse_water_filling, ([1.0], [1], math.nan)),
    "water infinite": (reverse_water_filling, ([1.0], [1], math.inf)),
    "water scale": (reverse_water_filling, ([math.nan], [1], 1.0)),
    "water count NaN": (reverse_water_filling, ([1.0], [math.nan], 1.0)),
    "water count infinite": (reverse_water_filling, ([1.0], [math.inf], 1.0)),
    "water exponent": (reverse_water_filling, ([1.0], [1], 1.0, math.nan)),
    "norms": (worst_case, ([math.nan], [0.1])),
    "errors": (worst_case, ([1.0], [math.nan])),
    "infinite norms": (worst_case, ([math.inf], [0.0])),
    "biases": (worst_case, ([1.0], [0.1], 1.0, 1.0, [math.nan])),
    "input norm": (worst_case, ([1.0], [0.1], math.nan)),
    "signal": (worst_case, ([1.0], [0.1], 1.0, math.nan)),
    "bandwidth": (Radio, (-1e6, 100.0, 0.5)),
    "noise": (Radio, (1e6, 0.0, 0.5)),
    "power": (Radio, (1e6, 100.0, math.nan)),
    "clock": (Stage, (1e-29, -1e9)),
    "no clock": (Stage, (1e-29, 0.0)),
    "coefficient": (Stage, (-1e-29, 1e9)),
    "coefficient NaN": (Stage, (math.nan, 1e9)),
    "coefficient word": (Stage, ("1e-29", 1e9)),
    "largest load": (largest_load, (lambda load: None, math.nan, 1.0)),
    "split energy": (pruned_split, ([(1.0, 1.0, 1.0)], 1.0, math.nan)),
    "split FLOPs": (pruned_split, ([(math.nan, 1.0, 1.0)], 1.0, 1.0)),
    "quantized energy": (quantized_split, (1.0, 1.0, 1.0, math.nan)),
    "quantized widths": (quantized_split, (1.0, 1.0, 1.0, 1.0)),
}
NAMED = {"split energy": {"radio": RADIO}, "split FLOPs": {"radio": RADIO},
         "quantized widths": {"bits": (0, -3, 64)}}  # fmt: skip


@pytest.mark.parametrize("name", LAW_CASES | CASES)
def test_nonsense_is_refused_by_name(name):
    call, given = (LAW_CASES | CASES)[name]
    with warnings.catch_warnings(), pytest.raises(ArgumentError) as refused:
        warnings.simplefilter("error")
        call(*given, **NAMED.get(name, {}))
    assert refused.value.got is not None and refused.value.expected and refused.value.remedy


@pytest.mark.filterwarnings("error")
def test_limits_that_make_sense():
    assert bounds.laplacian_rate(0.0) == math.inf and bounds.laplacian_rate(0.0, math.inf) == 0.0
    assert bounds.laplacian_distortion(math.inf) == 0.0 == bounds.lower_distortion(3.0, math.inf)
    assert bounds.fit_laplace([1e308] * 4).lam == pytest.approx(1e-308)
    next_to_nothing = reverse_water_filling([2.0**0.1], [3], 1e-300)  # the level rounds to above the scale
    assert next_to_nothing.bits == pytest.approx([0.0], abs=1e-12)


def test_grids_of_many_bits_reach_their_optimum():
    """Nothing of a fine scan over the step lies below; the error falls with every bit."""
    assert best_uniform_grid(16) == pytest.approx((3.6e-4, 9.753e-5), rel=2e-3)
    last = 1.0
    for bits in range(2, 25):
        step, error = best_uniform_grid(bits)
        assert error <= uniform_grid_l1(step * np.geomspace(0.2, 5.0, 400), bits).min() * (1 + 1e-9)
        assert error < last
        last = error


@pytest.mark.parametrize("loads", [(1e9, 1e9), (0.0, 1e9), (1e9, 0.0)])
@pytest.mark.parametrize("free", ["device", "server", "both"])
def test_free_energy_means_the_highest_clock(free, loads):
    """Each closed form is the limit of a coefficient that goes to nothing."""
    a1, a2 = loads
    device, server = (
        Stage(0.0 if free in (name, "both") else stage.coefficient, stage.max_hz)
        for name, stage in (("device", Q_DEVICE), ("server", Q_SERVER))
    )
    nearly = [Stage(stage.coefficient or 1e-45, stage.max_hz) for stage in (device, server)]
    for call, given in ((least_energy, (a1, a2)), (least_energy_with_link, (a1, 1e5, a2))):
        link = () if call is least_energy else (RADIO,)
        found = call(*given, 3.0, device, server, *link)
        limit = call(*given, 3.0, *nearly, *link)
        assert found.latency_s <= 3.0 * (1 + 1e-12)
        assert found.energy_j == pytest.approx(limit.energy_j, rel=1e-4, abs=1e-12)
        if free != "server" and a1:
            assert found.device_hz == pytest.approx(device.max_hz)
        if free != "device" and a2:
            assert found.server_hz == pytest.approx(server.max_hz)
