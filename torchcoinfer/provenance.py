"""What a plan says about where it came from: the model's hash and the versions, no time and no place."""

from __future__ import annotations

import hashlib
from importlib.metadata import version

import torch
from torch import nn


def model_hash(model: nn.Module) -> str:
    """SHA-256 over names, dtypes, shapes and bytes of all parameters and buffers, sorted by name."""
    digest = hashlib.sha256()
    state = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    for name in sorted(state):
        tensor = state[name].detach().cpu().contiguous()
        digest.update(f"{name}:{tensor.dtype}:{tuple(tensor.shape)};".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return digest.hexdigest()


def versions() -> dict[str, str]:
    """Versions that decide a plan."""
    return {"torchcoinfer": _own_version(), "torch": torch.__version__, "highspy": version("highspy")}


def _own_version() -> str:
    from torchcoinfer import __version__

    return __version__
