"""FCDNN-16, the 16-layer ReLU autoencoder of [Q] (arXiv 2602.13052), trained here on scikit-learn's digits.

[Q] gives the widths and the loss, not the data: 8 x 8 digits take less than a minute on one core and need no
download.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise

import numpy as np
import torch
from torch import nn
from tqdm import tqdm

from torchcoinfer.errors import ArgumentError, MissingExtra

PIXELS = 64
ENCODER_WIDTHS = (64, 128, 256, 512, 256, 128, 64, 32)
WIDTHS = (PIXELS, *ENCODER_WIDTHS, *ENCODER_WIDTHS[-2::-1], PIXELS)  # 17 widths, 16 linear layers
EPOCHS = 150
_PARTS = (897, 300, 300, 300)
_BATCH, _RATE = 64, 1.5e-3
_DECAY = 1.0  # without it the weights keep the law that they were drawn from, far from an exponential
_LARGEST_GRADIENT = 0.1  # norm; without the limit some seeds end with a dead code


@dataclass(frozen=True)
class Digits:
    """Disjoint parts of the 1,797 digits, shuffled: float32 [n, 64], pixels in 0 ... 1."""

    train: torch.Tensor
    calibration: torch.Tensor
    validation: torch.Tensor
    test: torch.Tensor


def digits(seed: int = 0) -> Digits:
    """scikit-learn's digits in four disjoint parts of 897, 300, 300 and 300.

    Raises:
        MissingExtra: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise MissingExtra("scikit-learn", "bench") from error
    pixels = (load_digits().data / 16.0).astype(np.float32)
    order = np.random.default_rng(seed).permutation(len(pixels))
    return Digits(*torch.from_numpy(pixels[order]).split(_PARTS))


def autoencoder(seed: int = 0) -> nn.Sequential:
    """Untrained FCDNN-16: linear layers without bias (as [Q Prop. III.1] has them), ReLU between them."""
    generator, layers = torch.Generator().manual_seed(seed), []
    for columns, rows in pairwise(WIDTHS):
        linear = nn.utils.skip_init(nn.Linear, columns, rows, bias=False)
        nn.init.kaiming_normal_(linear.weight, nonlinearity="relu", generator=generator)
        layers += [linear, nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def train_autoencoder(
    seed: int = 0, *, data: Digits | None = None, epochs: int = EPOCHS, progress: bool = False
) -> nn.Sequential:
    """FCDNN-16 trained for mean squared reconstruction error; the same bytes for the same seed and machine.

    Args:
        data: default ``digits(seed)``; only ``train`` is used.

    Returns:
        the network in eval mode: float32 [n, 64] -> [n, 64].

    Raises:
        ArgumentError: ``epochs`` is not positive.
        MissingExtra: ``data`` is None and scikit-learn is not installed.
    """
    if epochs < 1:
        raise ArgumentError("cannot train for no epoch", got=epochs, expected="epochs >= 1")
    pixels = (digits(seed) if data is None else data).train
    model, generator = autoencoder(seed), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(model.parameters(), lr=_RATE, weight_decay=_DECAY)
    steps = epochs * -(-len(pixels) // _BATCH)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=_RATE, total_steps=steps)
    with torch.enable_grad():
        for _ in tqdm(range(epochs), desc="training FCDNN-16", unit="epoch", disable=not progress):
            for batch in pixels[torch.randperm(len(pixels), generator=generator)].split(_BATCH):
                optimizer.zero_grad(set_to_none=True)
                nn.functional.mse_loss(model(batch), batch).backward()
                nn.utils.clip_grad_norm_(model.parameters(), _LARGEST_GRADIENT)
                optimizer.step()
                schedule.step()
    return model.eval().requires_grad_(False)
