"""[Q]'s constants and models, and what a global choice costs and distorts: the tables of ``papers``.

[Q] = arXiv 2602.13052; [P*] = derived here from the abstract of arXiv 2505.09214.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType

import numpy as np
from numpy.typing import ArrayLike

from torchcoinfer.errors import ArgumentError
from torchcoinfer.theory.bounds import FloatArray, lower_distortion, pruning_l1, upper_distortion
from torchcoinfer.theory.costs import DeviceProfile, LinkProfile
from torchcoinfer.theory.resources import (
    Q_DEVICE,
    Q_DEVICE_FLOPS_PER_CYCLE,
    Q_FLOAT_BITS,
    Q_SERVER,
    Q_SERVER_FLOPS_PER_CYCLE,
    Radio,
    Stage,
)


@dataclass(frozen=True)
class PaperSystem:
    """Device, server and link of the papers; the defaults are [Q]'s constants.

    Attributes:
        float_bits: b, the width of full precision; [Q] does not state it.
        radio: None leaves communication out of time and energy, as [Q] does.
    """

    device: Stage = Q_DEVICE
    server: Stage = Q_SERVER
    device_flops_per_cycle: float = Q_DEVICE_FLOPS_PER_CYCLE
    server_flops_per_cycle: float = Q_SERVER_FLOPS_PER_CYCLE
    float_bits: int = Q_FLOAT_BITS
    radio: Radio | None = None


@dataclass(frozen=True)
class PaperModel:
    """A model of [Q]'s evaluation with its nominal budget; [Q] does not state where it is split."""

    flops: float
    parameters: float
    latency_s: float
    energy_j: float


Q_SYSTEM = PaperSystem()
_Q_SOURCE = "arXiv 2602.13052; clocks from a thousandth of the highest, in analytic mode all between"
_Q_CLOCKS = (0.001, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
# [Q]'s constants as profiles, for compress_and_split(..., search=Search(mode="analytic")): [Q] has no static
# power and no memory limit, and leaves communication out, which a link of 1e18 bit/s stands for
Q_DEVICE_PROFILE, Q_SERVER_PROFILE = (
    DeviceProfile(
        name=name,
        clocks_hz=tuple(share * stage.max_hz for share in _Q_CLOCKS),
        flops_per_cycle=flops_per_cycle,
        efficiency=1.0,
        memory_bandwidth=1e18,
        memory_bytes=1e18,
        energy_coefficient=stage.coefficient,
        static_w=0.0,
        source=_Q_SOURCE,
    )
    for name, stage, flops_per_cycle in (
        ("[Q] device", Q_DEVICE, Q_DEVICE_FLOPS_PER_CYCLE),
        ("[Q] server", Q_SERVER, Q_SERVER_FLOPS_PER_CYCLE),
    )
)
Q_NO_LINK = LinkProfile("[Q] no link", 1e18, 1e18, 0.0, (1e-9,), 0.0, _Q_SOURCE)
Q_MODELS: Mapping[str, PaperModel] = MappingProxyType(
    {
        "BLIP-2 2.7B": PaperModel(533.66e9, 3.75e9, 3.5, 2.0),
        "GIT-base": PaperModel(212.27e9, 176.62e6, 2.0, 2.0),
    }
)


@dataclass(frozen=True)
class Split:
    """Work on either side (FLOPs at full precision) and bits on the link of one split point."""

    name: str
    device_flops: float
    link_bits: float
    server_flops: float


@dataclass(frozen=True)
class Level:
    """One global choice: the shares of the device's and of the server's work that it leaves."""

    name: str
    device_share: float
    server_share: float = 1.0


def bit_levels(bits: Sequence[int], float_bits: int = Q_FLOAT_BITS) -> tuple[Level, ...]:
    """[Q]: a width of b bits leaves b/float_bits of the device's work; the server stays as it is."""
    return tuple(Level(f"{b} bits", b / float_bits) for b in bits)


def pruning_levels(sparsities: Sequence[float]) -> tuple[Level, ...]:
    """[P*]: a pruned share rho leaves 1 - rho of the work of both parts."""
    return tuple(Level(f"{rho:g} pruned", 1.0 - rho, 1.0 - rho) for rho in sparsities)


def bound_gap(bits: ArrayLike, lam: float = 1.0) -> FloatArray:
    """[Q]'s objective D_U(R) - D_L(R) at R = b - 1 magnitude bits, strictly decreasing in b.

    Raises:
        ArgumentError: b < 2: with the sign alone D_U does not exist (it diverges as R goes to 0).
    """
    rate = np.asarray(bits, float) - 1.0
    if np.any(rate < 1.0):
        raise ArgumentError("[Q]'s bounds need a magnitude bit", got=bits, expected="bits >= 2")
    return upper_distortion(rate, lam) - lower_distortion(rate, lam)


def gap_table(
    splits: Sequence[Split], bits: Sequence[int], lam: float = 1.0, float_bits: int = Q_FLOAT_BITS
) -> FloatArray:
    """[splits, bits]: [Q]'s objective per weight of the whole model, weights shared out as the FLOPs are.

    Weights of the server count as a code of ``float_bits``, so that splits can be compared with each other;
    for one split it is [Q]'s objective up to an affine map.
    """
    total = np.array([s.device_flops + s.server_flops for s in splits])
    share = np.array([s.device_flops for s in splits]) / np.where(total > 0, total, 1.0)
    return share[:, None] * bound_gap(bits, lam) + (1.0 - share[:, None]) * bound_gap(float_bits, lam)


def pruning_table(splits: Sequence[Split], sparsities: Sequence[float], lam: float = 1.0) -> FloatArray:
    """[splits, sparsities]: D1(rho) of [P*], the same for every split: both parts are pruned."""
    return np.tile(pruning_l1(np.asarray(sparsities, float), lam), (len(splits), 1))
