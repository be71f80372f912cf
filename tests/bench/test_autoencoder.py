"""FCDNN-16 and its data: disjoint parts, the widths of [Q], the same weights for the same seed, and it
learns."""

import sys

import pytest
import torch

from torchcoinfer.bench.autoencoder import WIDTHS, autoencoder, digits, train_autoencoder
from torchcoinfer.errors import ArgumentError, MissingExtra


def test_sixteen_layers_of_the_papers_widths():
    layers = [m for m in autoencoder() if isinstance(m, torch.nn.Linear)]
    assert len(layers) == 16
    assert WIDTHS == (64, 64, 128, 256, 512, 256, 128, 64, 32, 64, 128, 256, 512, 256, 128, 64, 64)
    assert [layer.in_features for layer in layers] == list(WIDTHS[:-1])
    assert all(layer.bias is None for layer in layers)


def test_the_parts_of_the_digits_are_disjoint_and_complete():
    data = digits(3)
    parts = [data.train, data.calibration, data.validation, data.test]
    assert [len(part) for part in parts] == [897, 300, 300, 300]
    rows = [tuple(row) for part in parts for row in part.tolist()]
    everything = {tuple(row) for row in torch.cat([p for p in vars(digits(0)).values()]).tolist()}
    assert len(rows) == 1797
    assert set(rows) == everything
    assert float(min(part.min() for part in parts)) >= 0
    assert float(max(part.max() for part in parts)) == 1


def test_training_lowers_the_error_and_is_repeatable():
    data = digits()
    before = torch.random.get_rng_state()
    first, second = (train_autoencoder(1, data=data, epochs=3) for _ in range(2))
    assert torch.equal(torch.random.get_rng_state(), before)  # nobody else's random numbers are touched
    assert torch.equal(first(data.test), second(data.test))
    assert not any(p.requires_grad for p in first.parameters())

    def error(model):
        return torch.nn.functional.mse_loss(model(data.test), data.test)

    assert error(first) < 0.6 * error(autoencoder(1))
    other = train_autoencoder(2, data=data, epochs=1)
    assert not torch.equal(other(data.test), first(data.test))
    with pytest.raises(ArgumentError, match="no epoch"):
        train_autoencoder(epochs=0)


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(MissingExtra, match=r"torchcoinfer\[bench\]"):
        digits()
