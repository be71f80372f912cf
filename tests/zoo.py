"""Small models of every kind that can be traced, with inputs at any batch size and length."""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn
from torch.nn import functional
from torchvision.models import VisionTransformer, mobilenet_v3_small
from torchvision.models.resnet import BasicBlock, ResNet
from transformers import (
    BertConfig,
    BertModel,
    DistilBertConfig,
    DistilBertModel,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
)

from torchcoinfer.nn import QuantConv2d, QuantEmbedding, QuantLinear
from torchcoinfer.theory.budget import Workload
from torchcoinfer.trace import Traced, trace


class TwoBranches(nn.Module):
    """Two branches of different depth on [B, S, 8], joined; S and B vary."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Linear(8, 16)
        self.deep = nn.Sequential(nn.Linear(16, 32), nn.GELU(), nn.Linear(32, 16))
        self.flat = nn.Linear(16, 16)
        self.norm = nn.LayerNorm(16)
        self.head = nn.Linear(32, 4)

    def forward(self, x):
        x = functional.relu(self.stem(x))
        joined = torch.cat([self.deep(x), self.flat(x)], dim=-1)
        return self.head(joined) + self.norm(x).sum(-1, keepdim=True)


class Everything(nn.Module):
    """Shared modules called twice, tied weights, in-place ops, a recurrent leaf, nested inputs, outputs."""

    def __init__(self):
        super().__init__()
        self.fc, self.head = nn.Linear(8, 8), nn.Linear(8, 8)
        self.head.weight = self.fc.weight
        self.act = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(0.5))
        self.recurrent = nn.LSTM(8, 4, batch_first=True)
        self.register_buffer("shift", torch.ones(8))
        self.constant = torch.full((8,), 0.5)

    def forward(self, x, extra, scale=2.0):
        x = self.act(self.fc(x))
        x = self.act(self.fc(x))
        y = self.block(self.block(x)).add_(self.shift) + self.constant
        states, _ = self.recurrent(x[:, None])
        first, second = y.chunk(2, -1)
        return {
            "named": self.head(x) * scale + extra["list"][0],
            "pair": (y, None, x.shape[0]),
            "mask": extra["mask"] > 0,
            "states": states,
            "halves": [first, second],
        }


class Flattens(nn.Module):
    """Merges batch and sequence: no tensor in the middle has their sizes."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(8, 8), nn.Linear(8, 8)

    def forward(self, x):
        y = torch.tanh(self.first(x.reshape(-1, 8)))
        return self.second(y).reshape(x.shape[0], x.shape[1], 8)


def tokens(batch: int, length: int) -> dict[str, torch.Tensor]:
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[-1, -2:] = 0
    return {"input_ids": torch.randint(0, 60, (batch, length)), "attention_mask": mask}


def images(batch: int, length: int) -> tuple[torch.Tensor]:
    return (torch.randn(batch, 3, 32, 32),)


@dataclass(frozen=True)
class Case:
    make: Callable[[], nn.Module]
    inputs: Callable[[int, int], Any]  # (batch, length) -> tuple or dict


_BERT = {"vocab_size": 64, "hidden_size": 32, "num_attention_heads": 2, "intermediate_size": 48}
CASES = {
    "two_branches": Case(TwoBranches, lambda b, s: (torch.randn(b, s, 8),)),
    "everything": Case(
        Everything,
        lambda b, s: (torch.randn(b, 8), {"list": [torch.randn(b, 8)], "mask": torch.randint(0, 2, (b,))}),
    ),
    "flattens": Case(Flattens, lambda b, s: (torch.randn(b, s, 8),)),
    "resnet": Case(lambda: ResNet(BasicBlock, [1, 1, 1, 1], num_classes=10), images),
    "mobilenet": Case(lambda: mobilenet_v3_small(num_classes=10), images),
    "vit": Case(lambda: VisionTransformer(32, 8, 2, 4, 32, 64, num_classes=10), images),
    "bert": Case(lambda: BertModel(BertConfig(num_hidden_layers=2, **_BERT)), tokens),
    "distilbert": Case(
        lambda: DistilBertModel(
            DistilBertConfig(vocab_size=64, dim=16, n_heads=2, hidden_dim=32, n_layers=2)
        ),
        tokens,
    ),
    "llama": Case(
        lambda: LlamaForCausalLM(
            LlamaConfig(
                num_hidden_layers=2, num_key_value_heads=1, tie_word_embeddings=True, use_cache=False, **_BERT
            )
        ),
        tokens,
    ),
    "gpt2": Case(
        lambda: GPT2LMHeadModel(
            GPT2Config(
                vocab_size=64, n_embd=16, n_layer=2, n_head=2, bos_token_id=1, eos_token_id=1, use_cache=False
            )
        ),
        tokens,
    ),
}
# dims 1 of these vary when asked for (keywords of transformers do by default)
SEQUENCE = {dim: torch.export.Dim.AUTO for dim in (0, 1)}
DYNAMIC = {"two_branches": (SEQUENCE,), "flattens": (SEQUENCE,)}


def make(name: str, seed: int = 0) -> nn.Module:
    """The model, in train mode, its normalization statistics not trivial."""
    torch.manual_seed(seed)
    model = CASES[name].make().train()
    for module in model.modules():
        if isinstance(module, (nn.BatchNorm1d, nn.BatchNorm2d)):
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2)
    return model


def traced(name: str, model: nn.Module, workload: Workload | None = None) -> Traced:
    return trace(model, CASES[name].inputs(1, 6), dynamic_shapes=DYNAMIC.get(name), workload=workload)


@functools.cache
def traced_once(name: str, is_packed: bool) -> Traced:
    """For tests that leave it as it is."""
    return traced(name, packed(make(name)) if is_packed else make(name))


def call(model: Callable, inputs: Any) -> Any:
    return model(**inputs) if isinstance(inputs, dict) else model(*inputs)


_PACKED = {nn.Linear: QuantLinear, nn.Conv2d: QuantConv2d, nn.Embedding: QuantEmbedding}


def packed(model: nn.Module, bits: int = 4) -> nn.Module:
    """Every compressible module replaced in place by its packed form; tied weights share their storage."""
    made: dict[int, nn.Module] = {}
    for name, module in list(model.named_modules()):
        if type(module) not in _PACKED:
            continue
        replacement = _PACKED[type(module)].from_float(module, bits=bits, group_size=32)
        first = made.setdefault(id(module.weight), replacement)
        for buffer in ("packed", "scales", "zeros"):
            setattr(replacement, buffer, getattr(first, buffer))
        model.set_submodule(name, replacement)
    return model
