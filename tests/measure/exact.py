"""Tiny models, and the predictor's formula by brute force: float64 Jacobians in weight space."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.func import functional_call, jacrev
from torch.nn import functional
from transformers import BertConfig, BertModel

from torchcoinfer.theory.options import Option
from torchcoinfer.trace import Traced

FINE = Option(bits=8, format="int", group_size=64, algorithm="nearest")
COARSE = Option(bits=4, format="int", group_size=64, algorithm="nearest")
OPTIONS = (FINE, COARSE)


class Convolutions(nn.Module):
    """Plain, strided and padded, dilated, grouped and depthwise; an in-place ReLU on a layer's output."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(2, 4, 3, stride=2, padding=1)
        self.grouped = nn.Conv2d(4, 4, (3, 2), padding=(1, 0), groups=2, bias=False)
        self.depthwise = nn.Conv2d(4, 4, 2, groups=4, padding="same", dilation=2)
        self.norm = nn.BatchNorm2d(4)
        self.act = nn.ReLU(inplace=True)
        self.head = nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        x = self.act(self.plain(x))
        x = self.norm(self.grouped(x))
        x = x + self.act(self.depthwise(x))
        return self.head(x.mean((2, 3)))


class Tokens(nn.Module):
    """Embeddings, positions shared by the batch, a padding mask, a module called twice, a tied head."""

    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(11, 4)
        self.positions = nn.Embedding(6, 4)
        self.mix = nn.Linear(4, 4)
        self.head = nn.Linear(4, 11, bias=False)
        self.head.weight = self.words.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> dict[str, Tensor]:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)[None]
        x = self.words(input_ids) + self.positions(places)
        weights = attention_mask[..., None].to(x.dtype)
        x = x + torch.tanh(self.mix(x)) * weights
        x = x + torch.tanh(self.mix(x.mean(1, keepdim=True) + x))
        return {"hidden": x, "logits": self.head(x)}


class TimeFirst(nn.Module):
    """A layer inside whose input the batch is the second dim, as recurrent code has it."""

    def __init__(self) -> None:
        super().__init__()
        self.inner, self.outer = nn.Linear(3, 4), nn.Linear(4, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.outer(torch.tanh(self.inner(x.transpose(0, 1)))).transpose(0, 1)


def bert() -> nn.Module:
    """Attention as a real model writes it; position and token-type embeddings of one row."""
    config = BertConfig(
        vocab_size=11, hidden_size=4, num_hidden_layers=1, num_attention_heads=2, intermediate_size=6,
        max_position_embeddings=5,
    )  # fmt: skip
    return BertModel(config, add_pooling_layer=False)


def perceptron() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 5), nn.Tanh(), nn.Linear(5, 4), nn.GELU(), nn.Linear(4, 2))


def token_inputs(batch: int, length: int) -> dict[str, Tensor]:
    ids = torch.randint(0, 11, (batch, length))
    mask = torch.ones(batch, length, dtype=torch.long)
    mask[0, length - 1] = 0
    return {"input_ids": ids, "attention_mask": mask}


CASES = {
    "perceptron": (perceptron, lambda batch: (torch.randn(batch, 3, dtype=torch.float64),)),
    "convolutions": (Convolutions, lambda batch: (torch.randn(batch, 2, 8, 8, dtype=torch.float64),)),
    "bert": (bert, lambda batch: token_inputs(batch, 3)),
    "tokens": (Tokens, lambda batch: token_inputs(batch, 3)),
    "time first": (TimeFirst, lambda batch: (torch.randn(batch, 4, 3, dtype=torch.float64),)),
}


def make(name: str, batch: int = 3, seed: int = 0) -> tuple[nn.Module, tuple | dict]:
    torch.manual_seed(seed)
    build, inputs = CASES[name]
    model = build().double().eval()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.running_mean.normal_()
            module.running_var.uniform_(0.5, 2.0)
    return model, inputs(batch)


def changes(traced: Traced, seed: int = 1, size: float = 0.1) -> dict[tuple[str, Option], Tensor]:
    """A random weight change [N, K] for every (layer, option)."""
    generator = torch.Generator().manual_seed(seed)
    found = {}
    for layer in traced.graph.layers:
        for option in OPTIONS:
            shape = (layer.rows, layer.columns)
            found[layer.name, option] = size * torch.randn(shape, generator=generator, dtype=torch.float64)
    return found


def dense(model: nn.Module, layer: str) -> Tensor:
    weight = model.get_submodule(layer).weight.detach()
    return weight.reshape(weight.shape[0], -1)


def judged(model: nn.Module, parameters: Mapping[str, Tensor], inputs: tuple | dict) -> Tensor:
    """The judged tensor by hand: logits, else the hidden state; padded positions zero."""
    if isinstance(inputs, dict):
        output = functional_call(model, parameters, (), inputs)
        return output.get("logits", output.get("last_hidden_state")) * inputs["attention_mask"][..., None]
    return functional_call(model, parameters, inputs)


def exact_response(model: nn.Module, inputs: tuple | dict, layer: str, change: Tensor) -> Tensor:
    """J_l ΔW h by a full Jacobian with respect to the weight, [B, ...]: all its calls and shares at once."""
    parameters = dict(model.named_parameters())
    name = f"{layer}.weight"

    def run(weight: Tensor) -> Tensor:
        return judged(model, {**parameters, name: weight}, inputs)

    weight = parameters[name].detach()
    jacobian = jacrev(run)(weight).detach()
    return (jacobian * change.reshape(weight.shape)).flatten(-weight.dim()).sum(-1)


class Basis:
    """Every unit vector in turn, so that the average over probes is the exact expectation."""

    def __call__(self, judged: Tensor, probe: int, samples: Sequence[int]) -> Tensor:
        return functional.one_hot(torch.tensor(probe), judged.numel()).to(judged.dtype).reshape(
            judged.shape
        ) * math.sqrt(judged.numel())
